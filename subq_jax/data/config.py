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
    "text": ("source", "suffix", "data_dir", "tokenizer", "bpe_vocab_size"),
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data section of a config. Fields of a task other than `task` are ignored.

    `batch_size` sequences of `seq_len` tokens make one global step. `num_pairs` keys are bound to values in every
    recall sequence and `num_queries` questions are asked about them. `curriculum` entries `(first_step, length,
    num_pairs)` replace `seq_len` and `num_pairs` from `first_step` on; tokens per batch and questions per token stay
    the same; text has no curriculum. `source=""` is the standard library of the running interpreter, `data_dir=""` the
    user's cache folder. Of a source folder only files whose names end in `suffix` count, for instance `".py"`.
    """

    task: str
    seq_len: int
    batch_size: int
    vocab_size: int = 512
    num_pairs: int = 8
    num_queries: int = 8
    curriculum: tuple[tuple[int, int, int], ...] = ()
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
                object.__setattr__(self, name, _checked_curriculum(self.curriculum))
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

    def relevant_fields(self) -> dict[str, Any]:
        """The fields that `task` reads, the shape of the batch included."""
        return {name: getattr(self, name) for name in ("task", "seq_len", "batch_size", *_TASK_FIELDS[self.task])}


def _checked_curriculum(entries) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(entries, list | tuple):
        raise ValueError(f"data.curriculum must be a sequence of (first_step, length, num_pairs), got {entries!r}")
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            raise ValueError(f"data.curriculum entries must be (first_step, length, num_pairs), got {entry!r}")
        for name, value, minimum in zip(("first_step", "length", "num_pairs"), entry, (0, 1, 1), strict=True):
            check_integer(f"data.curriculum {name}", value, minimum)
    curriculum = tuple(tuple(entry) for entry in entries)
    first_steps = [entry[0] for entry in curriculum]
    if curriculum and (first_steps[0] != 0 or sorted(set(first_steps)) != first_steps):
        raise ValueError(f"data.curriculum must start at step 0 with rising first_step, got {first_steps}")
    return curriculum
