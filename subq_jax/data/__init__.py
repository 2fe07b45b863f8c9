"""Data: real text through TFDS and Grain, and synthetic recall tasks generated on the fly.

A batch is a dict of numpy arrays: `inputs` int32[B,T], `targets` int32[B,T] (what the model should say at each
position), `loss_weights` float32[B,T], `answer_mask` bool[B,T] (where accuracy counts) and `segment_ids` int32[B,T]
(the document of each position within its row, -1 for padding). Text batches for evaluation also hold `target_bytes`
int32[B,T], the UTF-8 bytes that each target stands for, so that bits per byte is exact.

An iterator has `__next__`, `get_state()` (a JSON-able dict) and `set_state(state)`, after which it continues with
the very same batches.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from subq_jax.checks import check_integer
from subq_jax.data.config import RECALL_TASKS, DataConfig
from subq_jax.data.tokenizers import Tokenizer

__all__ = [
    "Batch", "DataConfig", "DataInfo", "DataIterator", "data_info", "held_out_stream", "make_eval_batches",
    "make_train_iterator", "open_tokenizer"]


Batch = dict[str, np.ndarray]


class DataIterator(Protocol):
    """Endless batches with a place to come back to."""

    def __iter__(self) -> "DataIterator": ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a model and an experiment need to know about the data.

    `bytes_per_token` is measured on the validation split without padding; None for synthetic tasks. `fingerprint`
    changes whenever the same config would yield other batches.
    """

    vocab_size: int
    bytes_per_token: float | None
    fingerprint: str


def make_train_iterator(
    config: Mapping[str, Any] | DataConfig,
    *,
    seed: int,
    block_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "DataIterator":
    """Endless training batches: this process's share, `batch_size / process_count` rows of `seq_len` tokens.

    Documents of text start at multiples of `block_size`; recall tasks pay no attention to blocks.

    Raises:
      ValueError: for an unknown task, a wrong number, a batch that the processes cannot share evenly, or an unusable
        source folder.
    """
    config = DataConfig.from_mapping(config)
    check_integer("block_size", block_size)
    check_integer("seed", seed, 0)
    check_integer("process_count", process_count)
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}")
    if config.batch_size % process_count:
        raise ValueError(f"data.batch_size must be a multiple of {process_count} processes, got {config.batch_size}")
    if config.task in RECALL_TASKS:
        from subq_jax.data.recall import RecallIterator

        return RecallIterator(config, seed=seed, process_index=process_index, process_count=process_count)
    from subq_jax.data import questions, text_pipeline

    pipeline = questions if config.task == "questions" else text_pipeline
    return pipeline.train_iterator(
        config, seed=seed, block_size=block_size, process_index=process_index, process_count=process_count
    )


def make_eval_batches(
    config: Mapping[str, Any] | DataConfig,
    *,
    seed: int,
    block_size: int,
    length: int,
    num_batches: int,
    batch_size: int,
) -> list[Batch]:
    """At most `num_batches` held-out batches of `batch_size` rows of `length` tokens; the same ones on every call.

    Recall tasks use held-out keys; text uses the validation split, whose rows may run out (the last batch is then
    filled with padding rows).

    Raises:
      ValueError: as `make_train_iterator`, and when `length` is too short for the pairs and questions.
    """
    config = DataConfig.from_mapping(config)
    counts = dict(block_size=block_size, length=length, num_batches=num_batches, batch_size=batch_size)
    for name, value in counts.items():
        check_integer(name, value)
    check_integer("seed", seed, 0)
    if config.task in RECALL_TASKS:
        from subq_jax.data.recall import eval_batches

        return eval_batches(config, seed=seed, length=length, num_batches=num_batches, batch_size=batch_size)
    if config.task == "questions":
        from subq_jax.data.questions import eval_batches

        return eval_batches(config, seed=seed, length=length, num_batches=num_batches, batch_size=batch_size)
    from subq_jax.data.text_pipeline import eval_batches

    return eval_batches(config, block_size=block_size, length=length, num_batches=num_batches, batch_size=batch_size)


def data_info(config: Mapping[str, Any] | DataConfig) -> DataInfo:
    """Describes the data; for text this prepares the dataset and its tokenizer when they are not there yet."""
    config = DataConfig.from_mapping(config)
    if config.task in RECALL_TASKS:
        from subq_jax.data import recall

        recall.check(config)
        return DataInfo(config.vocab_size, None, _fingerprint(recall.VERSION, config.relevant_fields()))
    from subq_jax.data.text_pipeline import TokenisedSplit

    if config.task == "questions":
        from subq_jax.data import questions

        corpus = [TokenisedSplit.load(config, "validation").fingerprint] if config.text_share else []
        fingerprint = _fingerprint(questions.VERSION, config.relevant_fields(), *corpus)
        return DataInfo(questions.tokenizer_of(config).vocab_size, None, fingerprint)
    validation = TokenisedSplit.load(config, "validation")
    return DataInfo(validation.tokenizer.vocab_size, validation.bytes_per_token, validation.fingerprint)


def open_tokenizer(config: Mapping[str, Any] | DataConfig) -> Tokenizer:
    """The tokenizer of data that is text.

    Raises:
      ValueError: for a recall task, whose tokens stand for nothing.
    """
    config = DataConfig.from_mapping(config)
    if not config.has_text:
        raise ValueError(f"data.task must be text or questions for a tokenizer, got {config.task!r}")
    if config.task == "questions":
        from subq_jax.data.questions import tokenizer_of

        return tokenizer_of(config)
    from subq_jax.data.text_pipeline import TokenisedSplit

    return TokenisedSplit.load(config, "validation").tokenizer


def held_out_stream(config: Mapping[str, Any] | DataConfig) -> np.ndarray:
    """Tokens int [S] of the validation split's documents, one after another, each with its begin and end.

    Raises:
      ValueError: for data without a source of text, or an unusable one.
    """
    config = DataConfig.from_mapping(config)
    if config.task != "text" and not config.text_share:
        raise ValueError(f"data must have documents, got task={config.task!r} and text_share={config.text_share}")
    from subq_jax.data.text_pipeline import TokenisedSplit

    return TokenisedSplit.load(config, "validation").tokens


def _fingerprint(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
