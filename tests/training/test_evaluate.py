"""Evaluation of models whose answers are known."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from subq_jax.evaluation import evaluate

VOCAB = 128
RECALL = dict(task="mqar", seq_len=32, batch_size=4, vocab_size=VOCAB, num_pairs=4, num_queries=4)


class Config(NamedTuple):
    block_size: int = 4


class Oracle(nnx.Module):
    """Says the next token with certainty, since it may look ahead; `spoiled` makes it wrong at odd positions."""

    def __init__(self, spoiled: bool = False):
        self.config = Config()
        self.spoiled = spoiled
        self.scale = nnx.Param(jnp.float32(50.0))

    def __call__(self, tokens, *, segment_ids=None):
        ahead = jnp.roll(tokens, -1, axis=1)
        if self.spoiled:
            ahead = jnp.where(jnp.arange(tokens.shape[1])[None, :] % 2 == 1, (ahead + 1) % VOCAB, ahead)
        return self.scale[...] * jax.nn.one_hot(ahead, VOCAB)


class Ignorant(Oracle):
    """Finds every token equally likely."""

    def __call__(self, tokens, *, segment_ids=None):
        return 0.0 * super().__call__(tokens)


def score(model, **changes):
    arguments = dict(lengths=[32, 128], num_batches=2, batch_size=4, seed=0) | changes
    return evaluate(model, RECALL, **arguments)


def test_recall_scores_by_length():
    right, ignorant = score(Oracle()), score(Ignorant())
    assert [row["length"] for row in right] == [32, 128]
    for row in right:
        assert row["accuracy"] == 1.0
        assert row["loss"] < 1e-6
        assert row["bits_per_byte"] is None
        assert row["num_tokens"] == 2 * 4 * 4  # batches x rows x questions
    assert ignorant[0]["loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert 0.2 < score(Oracle(spoiled=True))[1]["accuracy"] < 0.8


def test_chunks_do_not_change_the_scores(monkeypatch):
    whole = score(Oracle(spoiled=True))
    two_short_rows_or_one_long = 64
    monkeypatch.setattr("subq_jax.evaluation.held_out.tokens_per_chunk", lambda: two_short_rows_or_one_long)
    for row, expected in zip(score(Oracle(spoiled=True)), whole, strict=True):
        assert row == pytest.approx(expected)


def test_text_scores_in_bits_per_byte(monkeypatch):
    batch = dict(
        inputs=jnp.zeros((2, 4), jnp.int32),
        targets=jnp.zeros((2, 4), jnp.int32),
        loss_weights=jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], jnp.float32),
        answer_mask=jnp.zeros((2, 4), bool),
        segment_ids=jnp.zeros((2, 4), jnp.int32),
        target_bytes=jnp.array([[3, 1, 2, 100], [2, 100, 100, 100]], jnp.int32),
    )
    monkeypatch.setattr("subq_jax.evaluation.held_out.make_eval_batches", lambda *_, **__: [batch])
    data = dict(task="text", seq_len=4, batch_size=2)
    (row,) = evaluate(Ignorant(), data, lengths=[4], num_batches=1, batch_size=2, seed=0)
    assert row["accuracy"] is None
    assert row["num_tokens"] == 4
    assert row["bits_per_byte"] == pytest.approx(4 * math.log2(VOCAB) / 8)  # 4 tokens stand for 8 bytes

    monkeypatch.setattr("subq_jax.evaluation.held_out.make_eval_batches", lambda *_, **__: [])
    with pytest.raises(ValueError, match="no sequences of length 4"):
        evaluate(Ignorant(), data, lengths=[4], num_batches=1, batch_size=2, seed=0)
