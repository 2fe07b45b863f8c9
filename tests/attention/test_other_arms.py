"""Dense, sliding-window and block-mean attention against one masked softmax, by value and by gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention import (
    block_mean_attention,
    dense_attention,
    global_token_attention,
    learned_router_attention,
    oracle_topk_attention,
    random_blocks_attention,
    sliding_window_attention,
)
from subq_jax.attention import dense as dense_file
from subq_jax.attention.learned_router import Index
from subq_jax.kernels.xla import grain

HUGE = 10**6  # a window beyond every length


def arrays(batch, queries, length, kv_heads=1, group=2, head_dim=8, seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    q = jax.random.normal(keys[0], (batch, queries, kv_heads * group, head_dim), dtype)
    return q, *(jax.random.normal(key, (batch, length, kv_heads, head_dim), dtype) for key in keys[1:])


def masked_softmax(q, k, v, visible, cotangent):
    """Attention of q [B, T, N, H] where `visible` [B, T, S], and its gradients, by the textbook in float64."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    (batch, length, kv_heads, head_dim), group = k.shape, q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    logits = np.einsum("btnh,bsnh->bnts", q, k) / head_dim**0.5
    weights = np.where(visible[:, None], np.exp(logits), 0)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)  # rows that see nothing are 0
    d_weights = np.einsum("btnh,bsnh->bnts", cotangent, v)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True)) / head_dim**0.5
    per_head = lambda x: x.reshape(batch, length, kv_heads, group, head_dim).sum(axis=3)
    return (
        np.einsum("bnts,bsnh->btnh", weights, v), np.einsum("bnts,bsnh->btnh", d_logits, k),
        per_head(np.einsum("bnts,btnh->bsnh", d_logits, q)), per_head(np.einsum("bnts,btnh->bsnh", weights, cotangent)))


def visibility(batch, queries, length, window, q_offset=None, kv_length=None, segment_ids=None):
    """bool [B, T, S] by the definition, one query and one key at a time."""
    visible = np.zeros((batch, queries, length), bool)
    for b in range(batch):
        present = length if kv_length is None else int(np.broadcast_to(kv_length, batch)[b])
        offset = present - queries if q_offset is None else int(np.broadcast_to(q_offset, batch)[b])
        for t in range(queries):
            for j in range(max(0, offset + t - window + 1), min(present, offset + t + 1)):
                ids = np.zeros(length) if segment_ids is None else np.asarray(segment_ids[b])
                visible[b, t, j] = ids[j] == ids[offset + t] >= 0
    return visible


def compare(attention, values, window, **where):
    """Values and gradients of `attention` against the masked softmax."""
    visible = visibility(values[0].shape[0], values[0].shape[1], values[1].shape[1], window, **where)
    cotangent = jax.random.normal(jax.random.key(9), values[0].shape)
    return compare_with(lambda *x: attention(*x, **where), values, visible, cotangent)


def compare_with(attention, values, visible, cotangent):
    """The output of `attention`, after comparing it and its gradients."""

    @jax.jit
    def run(*values):
        out, pull = jax.vjp(attention, *values)
        return out, *pull(cotangent)

    actual, expected = run(*values), masked_softmax(*values, visible, cotangent)
    for name, a, b in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-5, err_msg=name)
    return actual[0]


PLACES = {
    "whole": (2, 37, 37, {}),
    "last queries": (2, 5, 37, {}),
    "one token": (2, 1, 37, {"kv_length": np.array([1, 30], np.int32)}),
    "offset": (2, 6, 37, {"q_offset": 11}),
    "offsets": (2, 6, 37, {"q_offset": np.array([0, 20], np.int32), "kv_length": np.array([6, 33], np.int32)}),
    "packed": (2, 37, 37, {"segment_ids": np.array(
        [[0] * 10 + [1] * 7 + [-1] * 5 + [2] * 15, [-1] * 3 + [5] * 30 + [-1] * 4], np.int32)}),
    "packed, later": (1, 9, 37, {"q_offset": 12, "segment_ids": np.array([[0] * 17 + [1] * 20], np.int32)}),
}


@pytest.mark.parametrize("place", PLACES)
def test_dense_is_a_masked_softmax(place):
    batch, queries, length, where = PLACES[place]
    out = compare(dense_attention, arrays(batch, queries, length, 2), HUGE, **where)
    if place == "packed":
        assert not out[0, 17:22].any()


@pytest.mark.parametrize(("place", "window"), [
    ("whole", 1), ("whole", HUGE), ("last queries", 9), ("one token", 4), ("offsets", 3), ("packed", 6),
    ("packed, later", 8)])
def test_sliding_window_is_a_masked_softmax(place, window):
    batch, queries, length, where = PLACES[place]
    attention = lambda q, k, v, **where: sliding_window_attention(q, k, v, window, **where)
    compare(attention, arrays(batch, queries, length, 2), window, **where)


@pytest.mark.parametrize("window", [1, 150])
def test_windows_over_several_tiles_of_queries(window):
    """More queries than one tile of the band holds, in whole sequences that no tile divides."""
    attention = lambda q, k, v: sliding_window_attention(q, k, v, window)
    compare(attention, arrays(1, 203, 203, head_dim=4), window)


def test_a_window_sees_no_key_before_the_first_one():
    q, k, v = arrays(1, 4, 12)
    run = jax.jit(lambda *x: sliding_window_attention(*x[:3], 8, first_key=x[3]))
    out = run(q, k, v, 6)
    poisoned = [x.at[:, :6].set(1e3) for x in (k, v)]
    np.testing.assert_array_equal(out, run(q, *poisoned, 6))
    assert (out != run(q, k, v, 0)).any()


def test_dense_beyond_a_thousand_queries_reads_in_strips(monkeypatch):
    values, rows, attend = arrays(1, 1100, 1100, group=1, head_dim=4), [], dense_file.whole_attention
    monkeypatch.setattr(dense_file, "whole_attention", lambda q, *rest: (rows.append(q.shape[1]), attend(q, *rest))[1])
    cotangent = jax.random.normal(jax.random.key(9), values[0].shape)
    compare_with(dense_attention, values, np.tril(np.ones((1, 1100, 1100), bool)), cotangent)
    assert len(rows) == dense_file.STRIPS
    assert sum(rows) == 1100


def test_dense_in_many_chunks_is_a_masked_softmax(monkeypatch):
    monkeypatch.setattr(grain, "CPU_GRAIN", grain.CPU_GRAIN._replace(whole=1))
    monkeypatch.setattr("subq_jax.kernels.xla.dense.MIN_ROWS", 8)
    compare(dense_attention, arrays(2, 50, 50), HUGE)


@pytest.mark.parametrize("place", ["last queries", "one token", "offset", "offsets", "packed, later"])
def test_dense_over_several_tiles_of_a_cache_is_a_masked_softmax(monkeypatch, place):
    monkeypatch.setattr(grain, "CPU_GRAIN", grain.CPU_GRAIN._replace(keys=8))
    batch, queries, length, where = PLACES[place]
    compare(dense_attention, arrays(batch, queries, length, 2), HUGE, **where)


BLOCKS = SelectionConfig(block_size=4, num_blocks=1, local_blocks=1, sink_blocks=1)
TOKENS = SelectionConfig(block_size=1, num_blocks=4, local_blocks=4, sink_blocks=4)


def index(q, k):
    """An index of two heads made of the queries and keys themselves."""
    groups = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    return Index(groups[..., :2, :4], groups[..., :2, 5], k[..., :4])


ARMS = {
    "dense": dense_attention,
    "sliding_window": lambda q, k, v, **where: sliding_window_attention(q, k, v, 7, **where),
    "block_mean": lambda q, k, v, **where: block_mean_attention(
        q, k, v, BLOCKS, **where),
    "global_token": lambda q, k, v, **where: global_token_attention(
        q, k, v, jnp.sin(jnp.arange(2.0 * k.shape[2] * 8).reshape(2, k.shape[2], 8)), 5, 4, **where),
    "learned_router": lambda q, k, v, **where: learned_router_attention(q, k, v, index(q, k), TOKENS, **where),
    "random_blocks": lambda q, k, v, **where: random_blocks_attention(q, k, v, BLOCKS, **where),
    "oracle_topk": lambda q, k, v, **where: oracle_topk_attention(q, k, v, BLOCKS, **where),
}


@pytest.mark.parametrize(("arm", "tile"), [*((arm, None) for arm in ARMS), ("dense", 8)])
def test_absent_keys_never_leak(monkeypatch, arm, tile):
    if tile:
        monkeypatch.setattr(grain, "CPU_GRAIN", grain.CPU_GRAIN._replace(keys=tile))
    q, k, v = arrays(2, 3, 32)
    present = jnp.array([14, 29], jnp.int32)
    absent = (jnp.arange(32)[None] >= present[:, None])[..., None, None]

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(lambda *x: ARMS[arm](*x, kv_length=present), q, k, v)
        return out, *pull(jnp.ones_like(out))

    clean = run(q, k, v)
    for poison in (jnp.nan, jnp.inf):
        for a, b in zip(clean, run(q, *(jnp.where(absent, poison, x) for x in (k, v))), strict=True):
            np.testing.assert_array_equal(a, b)
    for gradient in clean[2:]:
        assert not jnp.where(absent, gradient, 0).any()
        assert gradient.any()


@pytest.mark.parametrize("arm", ARMS)
def test_padding_may_hold_anything(arm):
    q, k, v = arrays(1, 20, 20)
    segment_ids = jnp.array([[0] * 6 + [-1] * 2 + [1] * 8 + [-1] * 4])
    padding = (segment_ids < 0)[..., None, None]

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(lambda *x: ARMS[arm](*x, segment_ids=segment_ids), q, k, v)
        return out, *pull(jnp.ones_like(out))

    clean, poisoned = run(q, k, v), run(*(jnp.where(padding, jnp.nan, x) for x in (q, k, v)))
    for a, b in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not jnp.where(padding, clean[0], 0).any()


def test_block_mean_is_selective_attention_with_mean_keys():
    q, k, v = arrays(2, 40, 40, kv_heads=2, group=3)
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1, pooling="mean")
    mean_query = jnp.stack([q[:, :, :3].mean(axis=2), q[:, :, 3:].mean(axis=2)], axis=2)
    actual = jax.jit(lambda *x: block_mean_attention(*x, config))(q, k, v)
    expected = jax.jit(lambda *x: selective_attention(*x, config, gate=False, implementation="reference"))(
        q, k, v, mean_query, k)
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"q": jnp.zeros((20, 2, 8))}, ValueError, r"q must have 4 axes .*got shape \(20, 2, 8\)"),
    ({"q": jnp.zeros((1, 20, 3, 8))}, ValueError, "multiple of num_kv_heads=2, got 3"),
    ({"q": jnp.zeros((1, 20, 4, 8), jnp.int32)}, TypeError, "q must be a floating-point array, got int32"),
    ({"k": jnp.zeros((1, 20, 2, 6))}, ValueError, r"k must have shape \[B, S, K, H\]"),
    ({"v": jnp.zeros((1, 19, 2, 8))}, ValueError, r"v must have shape \[B, S, K, H\]"),
    ({"v": jnp.zeros((1, 20, 2, 8), jnp.bfloat16)}, ValueError, "v must have q's dtype float32, got bfloat16"),
    ({"q_offset": 1}, ValueError, "q_offset"),
    ({"kv_length": 21}, ValueError, "kv_length must lie in"),
    ({"segment_ids": jnp.zeros((1, 19), jnp.int32)}, ValueError, "segment_ids must have shape"),
])
def test_wrong_arguments_are_named(arm, changes, error, message):
    q, k, v = arrays(1, 20, 20, kv_heads=2)
    attend = ARMS[arm]
    if arm == "learned_router":
        attend = functools.partial(learned_router_attention, index=index(q, k), config=TOKENS)
    with pytest.raises(error, match=message):
        attend(**{"q": q, "k": k, "v": v} | changes)


@pytest.mark.parametrize("window", [0, -3, 2.0, True, float("nan"), None])
def test_a_wrong_window_is_named(window):
    with pytest.raises(ValueError, match=f"window must be an integer >= 1, got {window}"):
        sliding_window_attention(*arrays(1, 4, 4), window)
