"""What `config.data` may hold, and the checks that refuse a wrong value before any compute."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from subq_jax.checks import check_fields, check_integer

RECALL_TASKS = ("mqar", "needles")
TASKS = (*RECALL_TASKS, "text")
TOKENIZERS = ("bytes", "bpe")

_TASK_FIELDS = {
    "mqar": ("vocab_size", "num_pairs", "num_queries", "curriculum"),
    "needles": ("vocab_size", "num_pairs", "num_queries", "curriculum", "key_tokens", "value_tokens"),
    "text": ("source", "suffix", "data_dir", "tokenizer", "bpe_vocab_size", "curriculum"),
}
_STAGE_FIELDS = {"first_step": 0, "length": 1, "num_pairs": 1}  # with their least values; text has no pairs


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data section of a config. Fields of a task other than `task` are ignored.

    `batch_size` sequences of `seq_len` tokens make one global step. `num_pairs` keys are bound to values in every
    recall sequence and `num_queries` questions are asked about them. `curriculum` entries `(first_step, length,
    num_pairs)`, for text `(first_step, length)`, replace `seq_len` and `num_pairs` from `first_step` on; tokens per
    batch and questions per token stay the same, and rows of text are cut into rows of `length`. `source=""` is the
    standard library of the running interpreter, `data_dir=""` the user's cache folder. Of a source folder only files
    whose names end in `suffix` count, for instance `".py"`.
    """

    task: str
    seq_len: int
    batch_size: int
    vocab_size: int = 512
    num_pairs: int = 8
    num_queries: int = 8
    curriculum: tuple[tuple[int, ...], ...] = ()
    key_tokens: int = 2
    value_tokens: int = 2
    source: str = ""
    suffix: str = ""
    data_dir: str = ""
    tokenizer: str = "bytes"
    bpe_vocab_size: int = 4096

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"data.task must be one of {TASKS}, got {self.task!r}")
        for name in ("seq_len", "batch_size", *_TASK_FIELDS[self.task]):
            if name == "curriculum":
                object.__setattr__(self, name, _checked_curriculum(self.curriculum, self.task))
            elif isinstance(getattr(DataConfig, name, 0), int):
                check_integer(f"data.{name}", getattr(self, name))
            elif not isinstance(getattr(self, name), str):
                raise ValueError(f"data.{name} must be a string, got {getattr(self, name)!r}")
        if self.task == "text" and self.tokenizer not in TOKENIZERS:
            raise ValueError(f"data.tokenizer must be one of {TOKENIZERS}, got {self.tokenizer!r}")

    @classmethod
    def from_mapping(cls, values: "Mapping[str, Any] | DataConfig") -> "DataConfig":
        """Builds the config from a plain mapping, for instance a ConfigDict section.

        Raises:
          ValueError: when `values` is no mapping, has an unknown field, lacks one, or holds a wrong value.
        """
        if isinstance(values, cls):
            return values
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        required = [name for name, default in fields.items() if default is dataclasses.MISSING]
        check_fields("data", values, fields, required)
        return cls(**{name: values[name] for name in values})

    def length_at(self, step: int) -> int:
        """Tokens of a row of training step `step`, counted from 0."""
        return next((entry[1] for entry in reversed(self.curriculum) if entry[0] <= step), self.seq_len)

    def relevant_fields(self) -> dict[str, Any]:
        """The fields that `task` reads, the shape of the batch included."""
        return {name: getattr(self, name) for name in ("task", "seq_len", "batch_size", *_TASK_FIELDS[self.task])}


def check_stages(config: DataConfig, block_size: int) -> None:
    """Raises ValueError unless rows of text can be cut to the lengths of the curriculum, each at a block's start."""
    for _, length in config.curriculum if config.task == "text" else ():
        if config.seq_len % length or length % block_size and length < config.seq_len:
            raise ValueError(
                f"data.curriculum lengths must divide data.seq_len={config.seq_len} and be multiples of "
                f"block_size={block_size}, got {length}"
            )


def _checked_curriculum(entries, task: str) -> tuple[tuple[int, ...], ...]:
    names = tuple(_STAGE_FIELDS)[: 2 if task == "text" else 3]
    shape = f"({', '.join(names)})"
    if not isinstance(entries, list | tuple):
        raise ValueError(f"data.curriculum must be a sequence of {shape}, got {entries!r}")
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != len(names):
            raise ValueError(f"data.curriculum entries must be {shape}, got {entry!r}")
        for name, value in zip(names, entry, strict=True):
            check_integer(f"data.curriculum {name}", value, _STAGE_FIELDS[name])
    curriculum = tuple(tuple(entry) for entry in entries)
    first_steps = [entry[0] for entry in curriculum]
    if curriculum and (first_steps[0] != 0 or sorted(set(first_steps)) != first_steps):
        raise ValueError(f"data.curriculum must start at step 0 with rising first_step, got {first_steps}")
    return curriculum
