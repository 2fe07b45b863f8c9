"""A model that copies from far back shows in the part of the losses that far context can lower, and only there."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from subq_jax.evaluation import held_out
from subq_jax.evaluation.far_context import distances, far_context, tokens_read

VOCAB, LENGTH, WINDOW, NGRAM = 64, 256, 32, 4


class Config(NamedTuple):
    block_size: int = 4


class Copier(nnx.Module):
    """Says what followed the last `NGRAM - 1` tokens where they last stood `nearest` to `furthest` tokens back."""

    def __init__(self, nearest, furthest):
        self.config, self.nearest, self.furthest = Config(), nearest, furthest
        self.scale = nnx.Param(jnp.float32(50.0))

    def __call__(self, tokens, *, segment_ids):
        def same(array):
            return array[:, :, None] == array[:, None, :]

        run = equal = same(tokens) & same(segment_ids)
        for back in range(1, NGRAM - 1):
            run &= jnp.pad(equal, ((0, 0), (back, 0), (back, 0)))[:, :LENGTH, :LENGTH]
        places = jnp.arange(LENGTH)
        distance = places[:, None] - places[None, :]
        run &= ((distance >= self.nearest) & (distance <= self.furthest))[None]
        last = jnp.where(run, places[None, None, :], -1).max(axis=2)
        followed = jnp.take_along_axis(tokens, last + 1, axis=1)
        return self.scale[...] * jnp.where((last >= 0)[..., None], jax.nn.one_hot(followed, VOCAB), 0.0)


def batch(rows=2, seed=0):
    """Noise in which one run of 12 tokens comes twice near and one twice far, in a segment each."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, VOCAB, (rows, LENGTH + 1))
    text[:, 20:32] = text[:, 40:52]  # near: 20 back
    text[:, 60:72] = text[:, 180:192]  # far: 120 back
    segment_ids = np.zeros((rows, LENGTH), int)
    segment_ids[:, 210:] = 1
    segment_ids[:, 240:] = -1
    return {
        "inputs": text[:, :-1], "targets": text[:, 1:], "segment_ids": segment_ids,
        "loss_weights": (segment_ids >= 0).astype(np.float32), "target_bytes": np.full((rows, LENGTH), 2)}


def parts(model, **changes):
    rows = far_context(model, [batch(seed=0), batch(seed=1)], **{"window": WINDOW, "ngram": NGRAM} | changes)
    return {row["antecedent"] or row["first"]: row for row in rows}


@pytest.mark.parametrize(("copier", "low"), [(Copier(WINDOW + 1, 250), "far"), (Copier(1, WINDOW), "near")])
def test_a_copier_shows_where_it_copies(copier, low):
    found = parts(copier)
    assert [key for key in found if isinstance(key, str)] == ["none", "near", "far"]
    assert {found[part]["num_tokens"] for part in ("near", "far")} == {4 * (12 - NGRAM + 1)}
    for part in ("none", "near", "far"):
        expected = 0 if part == low else math.log(VOCAB)
        assert found[part]["loss"] == pytest.approx(expected, abs=0.01 if part == low else 0.5), part
        assert found[part]["bits_per_byte"] == pytest.approx(found[part]["loss"] / math.log(2) / 2)


def test_a_wider_window_makes_the_same_antecedent_near():
    found = parts(Copier(WINDOW + 1, 250), window=120)
    assert "far" not in found and found["near"]["num_tokens"] == 8 * (12 - NGRAM + 1)
    assert "far" in parts(Copier(WINDOW + 1, 250), window=119)


def test_positions_count_the_tokens_read_of_the_document():
    found = parts(Copier(1, WINDOW))
    # Segments of 210 and 30 tokens, in four rows.
    expected = {1: 8, 2: 16, 4: 32, 8: 64, 16: 4 * (16 + 15), 32: 128, 64: 256, 128: 4 * (210 - 127)}
    assert {key: row["num_tokens"] for key, row in found.items() if isinstance(key, int)} == expected
    assert all(row["last"] == 2 * key for key, row in found.items() if isinstance(key, int))


def test_parts_add_up_to_the_held_out_loss(monkeypatch):
    model, data = Copier(1, 250), {"task": "text", "seq_len": LENGTH, "batch_size": 2}
    monkeypatch.setattr(held_out, "make_eval_batches", lambda *_, **__: [batch(seed=0), batch(seed=1)])
    monkeypatch.setattr(held_out, "tokens_per_chunk", lambda: LENGTH)  # one row at a time
    (whole,) = held_out.evaluate(model, data, lengths=[LENGTH], num_batches=2, batch_size=2, seed=0)
    found = parts(model)
    for keys in (["none", "near", "far"], [key for key in found if isinstance(key, int)]):
        nats = sum(found[key]["loss"] * found[key]["num_tokens"] for key in keys)
        assert nats == pytest.approx(whole["loss"] * whole["num_tokens"], rel=1e-5)


def test_distances_are_those_of_a_search():
    rng = np.random.default_rng(0)
    targets, segment_ids = rng.integers(0, 3, (3, 50)), np.sort(rng.integers(0, 3, (3, 50)), axis=1)
    for ngram in (1, 2, 3, 60):
        expected = np.zeros((3, 50), int)
        for row in range(3):
            symbols = list(zip(segment_ids[row], targets[row], strict=True))
            for end in range(ngram - 1, 50):
                run = symbols[end - ngram + 1:end + 1]
                places = [before for before in range(ngram - 1, end) if symbols[before - ngram + 1:before + 1] == run]
                expected[row, end] = end - places[-1] if places else 0
        np.testing.assert_array_equal(distances(targets, segment_ids, ngram), expected)
    assert tokens_read(np.array([[0, 0, 1, 1, 1, -1]])).tolist() == [[1, 2, 1, 2, 3, 1]]


def test_refusals():
    for name in ("window", "ngram"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            parts(Copier(1, 2), **{name: 0})
    with pytest.raises(ValueError, match="batches must have tokens"):
        far_context(Copier(1, 2), [], window=1, ngram=1)
