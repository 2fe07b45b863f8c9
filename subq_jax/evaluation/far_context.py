"""Does a model use what stands far back? Its loss by position, and on tokens that repeat something near or far.

A target that ends a repeated run of `ngram` tokens could be copied from where the run last stood in the document. If
that place lies beyond a window, whoever sees the window alone has to guess: there, not in the mean over all tokens, far
context shows (Sun et al., 2021, arXiv:2109.09115; Arora et al., 2023, arXiv:2312.04927, for bigrams). Several layers
of window attention reach further than one window, and a frequent run is guessed without its copy: compare arms.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from subq_jax.checks import check_integer
from subq_jax.evaluation.held_out import chunks

ANTECEDENTS = "none", "near", "far"


def far_context(model: nnx.Module, batches: Iterable[Mapping[str, Any]], *, window: int, ngram: int) -> list[dict]:
    """Losses of text, teacher-forced, by position and by the distance to what is repeated.

    Args:
      model: a `Decoder`.
      batches: of text, from `subq_jax.data.make_eval_batches`.
      window: the distance up to which a repeated run is near: the tokens that a window shows, the last one included.
      ngram: tokens of a run, the target included; a few words' worth (a run of bytes is a word at 6 or so).

    Returns:
      `dict(antecedent, first, last, num_tokens, loss, bits_per_byte)` of every part that has tokens: first by position,
      where `first <= position < last` tokens of the document have been read (powers of two) and `antecedent` is None;
      then by `antecedent`, the most recent previous occurrence of the run: "none", "near" or "far", with `first` and
      `last` None. `loss` is in nats a token; `bits_per_byte` is None for a part without bytes.

    Raises:
      ValueError: when `window` or `ngram` is not positive, or the batches have no tokens.
    """
    check_integer("window", window)
    check_integer("ngram", ngram)
    graphdef, params = nnx.split(model)
    parts: dict[tuple, np.ndarray] = {}  # sums of tokens, nats and bytes
    for batch in batches:
        losses = np.concatenate([_losses(graphdef, params, chunk) for chunk in chunks(batch)])
        counted = np.asarray(batch["loss_weights"]) > 0
        segment_ids = np.asarray(batch["segment_ids"])
        distance = distances(np.asarray(batch["targets"]), segment_ids, ngram)
        kind = np.where(distance == 0, 0, np.where(distance <= window, 1, 2))
        octave = np.log2(tokens_read(segment_ids)).astype(int)
        sums = np.stack([np.ones(losses.shape), losses.astype(float), np.asarray(batch["target_bytes"], float)])
        for by, of_token in (("position", octave), ("antecedent", kind)):
            for value in np.unique(of_token[counted]).tolist():
                added = sums[:, counted & (of_token == value)].sum(axis=1)
                parts[by, value] = parts.get((by, value), 0) + added
    if not parts:
        raise ValueError("batches must have tokens that the loss covers, got none")
    return [_row(*part, *parts[part]) for part in sorted(parts, key=lambda part: (part[0] == "antecedent", part[1]))]


def distances(targets: np.ndarray, segment_ids: np.ndarray, ngram: int) -> np.ndarray:
    """How far back the `ngram` tokens that end in a target last stood in the same segment, 0 for nowhere; int64 [B, T].
    """
    found = np.zeros(targets.shape, np.int64)
    for row, (tokens, segments) in enumerate(zip(targets, segment_ids, strict=True)):
        # Equal runs get equal numbers, one token more at a time: exact, and as long as the row whatever `ngram` is.
        _, symbols = np.unique(segments.astype(np.int64) << 32 | tokens, return_inverse=True)
        runs = symbols
        for _ in range(ngram - 1):
            if len(runs) > 1:
                longer = runs[:-1] * len(symbols) + symbols[len(symbols) - len(runs) + 1:]
                _, runs = np.unique(longer, return_inverse=True)
            else:
                runs = runs[:0]
        order = np.argsort(runs, kind="stable")
        again = runs[order[1:]] == runs[order[:-1]]
        found[row, order[1:][again] + ngram - 1] = (order[1:] - order[:-1])[again]
    return found


def tokens_read(segment_ids: np.ndarray) -> np.ndarray:
    """The tokens of its segment up to each place, itself included; int [B, T]."""
    places = np.broadcast_to(np.arange(segment_ids.shape[1]), segment_ids.shape)
    begins = np.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1) + 1


def _row(by: str, value: int, num_tokens: float, nats: float, num_bytes: float) -> dict:
    first, last = (2**value, 2 ** (value + 1)) if by == "position" else (None, None)
    return {
        "antecedent": ANTECEDENTS[value] if by == "antecedent" else None, "first": first, "last": last,
        "num_tokens": int(num_tokens), "loss": nats / num_tokens,
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else None}


# At module level with the graph static, so that evaluations of equal models share a compilation.
@functools.partial(jax.jit, static_argnames=("graphdef",))
def _losses(graphdef, params, batch):
    logits = nnx.merge(graphdef, params)(batch["inputs"], segment_ids=batch["segment_ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["targets"])
