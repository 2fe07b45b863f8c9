"""Loss, recall accuracy and bits per byte on held-out data, at lengths far beyond training."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from subq_jax.data import DataConfig, make_eval_batches
from subq_jax.evaluation.losses import weighted_cross_entropy

LOSS_NEEDS = ("inputs", "targets", "loss_weights", "segment_ids")


def tokens_per_chunk() -> int:
    """Tokens in one forward pass, few so that memory hardly grows with length; an accelerator needs more to be busy."""
    return 8192 if jax.default_backend() == "cpu" else 65_536


def evaluate(
    model: nnx.Module,
    data_config: Mapping[str, Any],
    *,
    lengths: Sequence[int],
    num_batches: int,
    batch_size: int,
    seed: int,
) -> list[dict[str, float | int | None]]:
    """Scores `model` on held-out data, the same for every model of equal `data_config`, `seed` and sizes.

    Answers are scored teacher-forced: the forward pass sees the right tokens, and an answer counts when every one of
    its tokens is the argmax, which is when greedy decoding would have produced it.

    Args:
      model: a `Decoder`.
      data_config: the data section of a config.
      lengths: sequence lengths; each compiles once.
      num_batches: batches for each length (text may hold fewer).
      batch_size: sequences in a batch.
      seed: chooses the held-out sequences.

    Returns:
      for each length `dict(length, loss, accuracy, bits_per_byte, num_tokens)`: nats a weighted token; the fraction of
      answers that are right (None for text); bits per byte of text (None for recall); positions that the loss covers.

    Raises:
      ValueError: when the data has no sequences of a length, or the data section is wrong.
    """
    data = DataConfig.from_mapping(data_config)
    graphdef, params = nnx.split(model)
    rows = []
    for length in lengths:
        batches = make_eval_batches(
            data,
            seed=seed,
            block_size=model.config.block_size,
            length=length,
            num_batches=num_batches,
            batch_size=batch_size,
        )
        rows.append({"length": length} | _evaluate_batches(graphdef, params, batches, data.task == "text"))
        if not rows[-1]["num_tokens"]:
            raise ValueError(f"the held-out data has no sequences of length {length}")
    return rows


def _evaluate_batches(graphdef, params, batches, is_text: bool) -> dict[str, float | int | None]:
    nats = weight = 0.0
    tokens = num_bytes = right = answers = 0
    for batch in batches:
        batch_nats, batch_weight, correct = _score_in_chunks(graphdef, params, batch, packed=is_text)
        nats, weight = nats + batch_nats, weight + batch_weight
        counted = np.asarray(batch["loss_weights"]) > 0
        tokens += int(counted.sum())
        if is_text:
            num_bytes += int(np.asarray(batch["target_bytes"])[counted].sum())
        else:
            batch_right, batch_answers = count_answers(correct, np.asarray(batch["answer_mask"]))
            right, answers = right + batch_right, answers + batch_answers
    return {
        "loss": nats / max(weight, 1.0),
        "accuracy": right / answers if answers else None,
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else None,
        "num_tokens": tokens,
    }


def count_answers(correct: np.ndarray, answer_mask: np.ndarray) -> tuple[int, int]:
    """How many answers are right, and how many there are; an answer is a run of True in `answer_mask`, bool [B, T]."""
    before = np.pad(answer_mask, ((0, 0), (1, 0)))[:, :-1]
    answer_of = np.cumsum(answer_mask & ~before).reshape(answer_mask.shape)  # 1, 2, ... along all rows
    wrong = np.unique(answer_of[answer_mask & ~correct])
    total = int(answer_of[-1, -1])
    return total - len(wrong), total


def chunks(batch: Mapping[str, Any]) -> Iterator[dict[str, np.ndarray]]:
    """What a loss needs of a batch, in parts of equally many rows that hold `tokens_per_chunk` or are one row."""
    num_rows, length = batch["inputs"].shape
    fitting = max(1, tokens_per_chunk() // length)
    size = max(n for n in range(1, num_rows + 1) if num_rows % n == 0 and n <= fitting)
    for start in range(0, num_rows, size):
        yield {name: np.asarray(batch[name][start : start + size]) for name in LOSS_NEEDS}


def _score_in_chunks(graphdef, params, batch, *, packed: bool) -> tuple[float, float, np.ndarray]:
    nats = weight = 0.0
    correct = []
    for chunk in chunks(batch):
        chunk_nats, chunk_weight, chunk_correct = _score(graphdef, params, chunk, packed)
        nats, weight = nats + float(chunk_nats), weight + float(chunk_weight)
        correct.append(np.asarray(chunk_correct))
    return nats, weight, np.concatenate(correct)


# At module level with the graph static, so that evaluations during one training run share a compilation.
@functools.partial(jax.jit, static_argnames=("graphdef", "packed"))
def _score(graphdef, params, batch, packed):
    logits = nnx.merge(graphdef, params)(batch["inputs"], segment_ids=batch["segment_ids"] if packed else None)
    nats, weight = weighted_cross_entropy(logits, batch["targets"], batch["loss_weights"])
    return nats, weight, jnp.argmax(logits, axis=-1) == batch["targets"]
