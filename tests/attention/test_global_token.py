"""A window and slots against the definition, one block and one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subq_jax.attention import global_token_attention
from subq_jax.attention.global_token import block_slots, update_slots

BLOCK, WINDOW, SLOTS, KV_HEADS, GROUP, HEAD_DIM, LENGTH = 4, 6, 2, 2, 2, 8, 29
PACKED = np.array([[0] * 13 + [-1] * 3 + [1] * 12 + [-1]], np.int32)


def arrays(batch=1, queries=LENGTH, seed=0):
    shapes = [(batch, queries, KV_HEADS * GROUP, HEAD_DIM), *[(batch, LENGTH, KV_HEADS, HEAD_DIM)] * 2,
              (SLOTS, KV_HEADS, HEAD_DIM)]
    keys = jax.random.split(jax.random.key(seed), 4)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def softmax(x):
    x = jnp.exp(x - x.max())
    return x / x.sum()


def document(q, k, v, slot_query, first_query=0):
    """One document and KV head by the definition: q [T, G, H] from `first_query` on, k and v [S, H]."""
    summaries = []
    for b in range(len(k) // BLOCK):
        own = slice(b * BLOCK, (b + 1) * BLOCK)
        keys, values = (jnp.concatenate([*(s[i][None] for s in summaries[-SLOTS:]), x[own]])
                        for i, x in enumerate((k, v)))
        weights = softmax(keys @ slot_query[b % SLOTS] / HEAD_DIM**0.5)
        summaries.append((weights @ keys, weights @ values))
    rows = []
    for t in range(len(q)):
        position = first_query + t
        block = position // BLOCK
        seen = summaries[max(0, block - SLOTS) : block]
        window = slice(max(0, position - WINDOW + 1), position + 1)
        keys, values = (jnp.concatenate([*(s[i][None] for s in seen), x[window]]) for i, x in enumerate((k, v)))
        rows.append(jnp.stack([softmax(keys @ q[t, g] / HEAD_DIM**0.5) @ values for g in range(GROUP)]))
    return jnp.stack(rows)


def whole(q, k, v, slot_query, segment_ids=None, first_query=0):
    """The same of every sequence, document and KV head."""
    batch, queries = q.shape[:2]
    q = q.reshape(batch, queries, KV_HEADS, GROUP, HEAD_DIM)
    out = jnp.zeros(q.shape)
    for row in range(batch):
        ids = np.zeros(LENGTH) if segment_ids is None else segment_ids[row]
        for value in sorted(set(ids[ids >= 0])):
            (places,) = np.nonzero(ids == value)
            begin, end = places[0], places[-1] + 1
            for head in range(KV_HEADS):
                at, own = slice(None) if segment_ids is None else slice(begin, end), slice(begin, end)
                result = document(q[row, at, head], k[row, own, head], v[row, own, head], slot_query[:, head],
                                  first_query)
                out = out.at[row, at, head].set(result)
    return out.reshape(batch, queries, -1, HEAD_DIM)


def attend(*values, **where):
    return global_token_attention(*values, WINDOW, BLOCK, **where)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_values_and_gradients_are_those_of_the_definition(packed):
    values = arrays()
    segment_ids = PACKED if packed else None
    results = []
    for function in (lambda *x: attend(*x, segment_ids=segment_ids), lambda *x: whole(*x, segment_ids)):
        def loss(*x, f=function):
            out = f(*x)
            return jnp.sin(out).sum(), out

        grads, out = jax.jit(jax.grad(loss, argnums=range(4), has_aux=True))(*values)
        results.append((out, grads))
    (out, grads), (wanted, wanted_grads) = results
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    for name, a, b in zip(("q", "k", "v", "slot_query"), grads, wanted_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, err_msg=name)
        assert b.any()


@pytest.mark.parametrize(("queries", "offset"), [(1, 0), (1, 23), (5, 14), (9, 20), (12, 8)])
def test_queries_may_start_anywhere(queries, offset):
    values = arrays(queries=queries)
    run = jax.jit(lambda offset: attend(*values, q_offset=offset, kv_length=offset + queries))
    np.testing.assert_allclose(run(offset), whole(*values, first_query=offset), atol=1e-5)


def test_summaries_are_continued_as_tokens_arrive():
    q, k, v, slot_query = arrays()
    expected = block_slots(k, v, slot_query, BLOCK)
    slots = jax.tree.map(jnp.zeros_like, expected)
    start = 0
    for count in (1, 3, 4, 9, 2, 10):
        hidden = jnp.arange(LENGTH)[None, :, None, None] < start + count
        slots = jax.jit(lambda *x, n=count: update_slots(*x[:4], BLOCK, x[4], n))(
            slots, jnp.where(hidden, k, 99.0), jnp.where(hidden, v, 99.0), slot_query, start)
        start += count
    for a, b in zip(slots, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    out = attend(q, k, v, slot_query, slots=slots)
    np.testing.assert_allclose(out, attend(q, k, v, slot_query), atol=1e-5)


def test_what_was_overwritten_is_still_felt_through_later_summaries():
    q, k, v, slot_query = arrays()
    far = jax.jit(lambda v: attend(q, k, v, slot_query)[:, -1])
    assert (far(v) != far(v.at[:, 0].set(100.0))).any()  # seven blocks back, two slots: through later summaries


def test_wrong_arguments_are_named():
    q, k, v, slot_query = arrays()
    with pytest.raises(ValueError, match=r"slot_query must have shape \[n, K, H\] = \(n, 2, 8\)"):
        attend(q, k, v, slot_query[:, :1])
    with pytest.raises(ValueError, match="window must be an integer >= 1, got 0"):
        global_token_attention(q, k, v, slot_query, 0, BLOCK)
    with pytest.raises(ValueError, match="documents must start at a multiple of block_size=4"):
        attend(q, k, v, slot_query, segment_ids=np.array([[0] * 5 + [1] * 24], np.int32))
