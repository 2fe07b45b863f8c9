"""What `config.data` may hold, and the checks that refuse a wrong value before any compute."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from subq_jax.checks import check_fields, check_integer, check_share

RECALL_TASKS = ("mqar", "needles")
TASKS = (*RECALL_TASKS, "text", "questions")
TOKENIZERS = ("bytes", "bpe")

_TEXT_FIELDS = ("source", "suffix", "data_dir", "tokenizer", "bpe_vocab_size", "curriculum")
_TASK_FIELDS = {
    "mqar": ("vocab_size", "num_pairs", "num_queries", "curriculum"),
    "needles": ("vocab_size", "num_pairs", "num_queries", "curriculum", "key_tokens", "value_tokens"),
    "text": _TEXT_FIELDS,
    "questions": (*_TEXT_FIELDS, "question_tasks", "num_questions", "context_weight", "text_share"),
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
    whose names end in `suffix` count, for instance `".py"`. Rows of `"questions"` hold a context of one of
    `question_tasks` (names of `subq_jax.tasks.TEACHABLE`) and up to `num_questions` questions about it; what is no
    answer has `context_weight` in the loss, and `text_share` of the rows in training are rows of `"text"`.
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
    question_tasks: tuple[str, ...] = ()
    num_questions: int = 4
    context_weight: float = 0.1
    text_share: float = 0.0

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"data.task must be one of {TASKS}, got {self.task!r}")
        for name in ("seq_len", "batch_size", *_TASK_FIELDS[self.task]):
            if name == "curriculum":
                object.__setattr__(self, name, _checked_curriculum(self.curriculum, self.task))
            elif name == "question_tasks":
                object.__setattr__(self, name, _checked_question_tasks(self.question_tasks))
            elif isinstance(default := getattr(DataConfig, name, 0), int):
                check_integer(f"data.{name}", getattr(self, name))
            elif isinstance(default, float):
                check_share(f"data.{name}", getattr(self, name))
            elif not isinstance(getattr(self, name), str):
                raise ValueError(f"data.{name} must be a string, got {getattr(self, name)!r}")
        if "tokenizer" in _TASK_FIELDS[self.task] and self.tokenizer not in TOKENIZERS:
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

    @property
    def has_text(self) -> bool:
        """Whether tokens stand for text, so that there is a tokenizer."""
        return self.task not in RECALL_TASKS

    @property
    def packs_documents(self) -> bool:
        """Whether a training row may hold several documents, which must not see each other."""
        return self.task == "text" or self.task == "questions" and self.text_share > 0

    def length_at(self, step: int) -> int:
        """Tokens of a row of training step `step`, counted from 0."""
        return next((entry[1] for entry in reversed(self.curriculum) if entry[0] <= step), self.seq_len)

    def relevant_fields(self) -> dict[str, Any]:
        """The fields that `task` reads, the shape of the batch included."""
        return {name: getattr(self, name) for name in ("task", "seq_len", "batch_size", *_TASK_FIELDS[self.task])}


def check_stages(config: DataConfig, block_size: int) -> None:
    """Raises ValueError unless rows of text can be cut to the lengths of the curriculum, each at a block's start."""
    for _, length in config.curriculum if config.has_text else ():
        if config.seq_len % length or length % block_size and length < config.seq_len:
            raise ValueError(
                f"data.curriculum lengths must divide data.seq_len={config.seq_len} and be multiples of "
                f"block_size={block_size}, got {length}"
            )


def _checked_curriculum(entries, task: str) -> tuple[tuple[int, ...], ...]:
    names = tuple(_STAGE_FIELDS)[: 3 if task in RECALL_TASKS else 2]
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


def _checked_question_tasks(names) -> tuple[str, ...]:
    from subq_jax.tasks import TEACHABLE

    if not isinstance(names, list | tuple) or not names or set(names) - set(TEACHABLE):
        raise ValueError(f"data.question_tasks must be some of {TEACHABLE}, got {names!r}")
    return tuple(names)
