"""Random attention problems for the tests of every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention.checks import locate
from subq_jax.selection.choose import block_scores
from subq_jax.selection.summaries import block_summaries
from subq_jax.selection.visibility import local_ids, sink_ids

NAMES = ("q", "k", "v", "router_q", "router_k")
MILD = 1 / 16  # scales router queries of 64 channels so that gates are about 1: local blocks and sinks weigh something


def arrays(seed, batch, queries, length, kv_heads, group, head_dim=8, router_dim=4, dtype=jnp.float32, router_scale=1):
    """q, k, v, router_q, router_k of the given sizes; the router's features are non-negative, as the model's are.

    Its queries are multiplied by `router_scale`; a power of 2 leaves every choice as it is.
    """
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = [(batch, queries, kv_heads * group, head_dim), *[(batch, length, kv_heads, head_dim)] * 2,
              (batch, queries, kv_heads, router_dim), (batch, length, kv_heads, router_dim)]
    q, k, v, router_q, router_k = (jax.random.normal(x, s, dtype) for x, s in zip(keys, shapes, strict=True))
    return q, k, v, jax.nn.softplus(router_q) * router_scale, jax.nn.softplus(router_k)


@st.composite
def problems(draw):
    """(arrays, config, gate, keyword arguments): batches, head groups, offsets, absent keys, packed documents."""
    batch, kv_heads, group = (draw(st.integers(1, 2)) for _ in range(3))
    length = draw(st.integers(1, 90))
    config = SelectionConfig(
        block_size=draw(st.sampled_from([1, 3, 4, 8])), num_blocks=draw(st.integers(1, 5)),
        local_blocks=draw(st.integers(1, 3)), sink_blocks=draw(st.integers(0, 2)),
        pooling=draw(st.sampled_from(["max", "mean"])))
    where = {}
    queries = draw(st.one_of(st.just(length), st.integers(1, length)))
    if draw(st.booleans()):
        present = [draw(st.integers(queries, length)) for _ in range(batch)]
        where["kv_length"] = jnp.array(present, jnp.int32)
        if draw(st.booleans()):
            where["q_offset"] = jnp.array([draw(st.integers(0, p - queries)) for p in present], jnp.int32)
    elif draw(st.booleans()):
        where["segment_ids"] = jnp.array([draw(documents(length, config.block_size)) for _ in range(batch)])
    values = arrays(draw(st.integers(0, 99)), batch, queries, length, kv_heads, group)
    return values, config, draw(st.booleans()), where


@st.composite
def documents(draw, length, block_size):
    """Segment ids of documents that start at block boundaries, the last tokens of each possibly padding."""
    ids, number = [], 0
    while len(ids) < length:
        room = block_size * draw(st.integers(1, 6))
        padding = draw(st.integers(0, block_size - 1))
        ids += [number] * (room - padding) + [-1] * padding
        number += 1
    return ids[:length]


def with_grads(config, implementation, gate, **where):
    """A compiled function of the five arrays: (out, selection, their gradients) under a fixed random cotangent."""
    def loss(*values, weight):
        out, selection = selective_attention(
            *values, config, gate=gate, implementation=implementation, return_selection=True, **where)
        return (out.astype(jnp.float32) * weight).sum(), (out, selection)

    grads = jax.jit(jax.grad(loss, argnums=range(5), has_aux=True))

    def run(*values):
        found, (out, selection) = grads(*values, weight=jax.random.normal(jax.random.key(7), values[0].shape))
        return out, selection, found

    return run


def value_and_grads(values, config, implementation, gate, **where):
    """`with_grads`, called once."""
    return with_grads(config, implementation, gate, **where)(*values)


def error(actual, expected) -> float:
    """Norm of the difference over that of what is expected; 0 where both are 0."""
    difference = jnp.linalg.norm((actual.astype(jnp.float32) - expected).ravel())
    return float(difference / jnp.maximum(jnp.linalg.norm(expected.ravel()), 1e-20))


def assert_close(actual, expected, name, tolerance=2e-5):
    """Asserts that no number is off by more than `tolerance` times the largest that is expected, or 1."""
    scale = max(1.0, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def assert_equally_good(selection, expected, values, config):
    """Every chosen block scores, by the reference, at least as high as the worst block that the reference chose."""
    scores = block_scores(values[3], block_summaries(values[4], config.block_size, config.pooling)).swapaxes(1, 2)
    of = lambda ids: jnp.take_along_axis(scores, jnp.maximum(ids, 0), axis=-1)
    np.testing.assert_array_equal((selection >= 0).sum(-1), (expected >= 0).sum(-1))
    worst = jnp.where(expected >= 0, of(expected), jnp.inf).min(-1, keepdims=True)
    margin = 1e-5 * jnp.maximum(1, jnp.abs(worst))
    assert bool(((selection < 0) | (of(selection) >= worst - jnp.where(jnp.isfinite(worst), margin, 0))).all())
    ids = np.asarray(selection)
    real = ids >= 0
    assert (real[..., :-1] >= real[..., 1:]).all(), "valid ids come first"
    assert (np.diff(ids, axis=-1)[real[..., 1:]] > 0).all(), "ids ascend"


def weight_of_kinds(values, selection, config, gate, **where):
    """Mean weight of all sinks, of all local and of all chosen blocks over the queries that see each of these kinds.

    Kinds that `config` has none of are left out. A block that is both a sink and local counts as local.
    """
    assert values[2].shape[3] * config.block_size >= values[2].shape[1], "a channel for every block"
    def means(q, k, v, router_q, router_k):
        block = jnp.arange(k.shape[1]) // config.block_size
        of_block = jnp.broadcast_to(jax.nn.one_hot(block, v.shape[3])[None, :, None], v.shape)  # adds up what is seen
        weights = selective_attention(q, k, of_block, router_q, router_k, config, gate=gate, selection=selection,
                                      implementation="reference", **where)
        weights = weights.reshape(*selection.shape[:3], -1, v.shape[3]).mean(axis=3)
        places = (where.get(name) for name in ("q_offset", "kv_length", "segment_ids"))
        place, _ = locate(q, k, *places, config.block_size)
        kinds = [*(x[:, :, None] for x in (sink_ids(place, config), local_ids(place, config))), selection]
        kinds = [jnp.broadcast_to(ids, (*selection.shape[:3], ids.shape[-1])) for ids in kinds if ids.shape[-1]]
        seen = functools.reduce(jnp.logical_and, [(ids >= 0).any(axis=-1) for ids in kinds])
        of = lambda ids: jnp.where(ids >= 0, jnp.take_along_axis(weights, jnp.maximum(ids, 0), axis=-1), 0).sum(axis=-1)
        return [jnp.where(seen, of(ids), 0).sum() / seen.sum() for ids in kinds]

    return [float(mean) for mean in jax.jit(means)(*(x.astype(jnp.float32) for x in values))]


def assert_equals_reference(found, values, config, gate, **where):
    """Asserts in two steps that `found` of `value_and_grads` is the contract's: the choice, then all that follows."""
    out, selection, grads = found
    chosen = jax.jit(lambda *x: selective_attention(
        *x, config, gate=gate, implementation="reference", return_selection=True, **where)[1])
    assert_equally_good(selection, chosen(*values), values, config)
    expected, _, expected_grads = value_and_grads(values, config, "reference", gate, selection=selection, **where)
    assert_close(out, expected, "out")
    for name, grad, wanted in zip(NAMES, grads, expected_grads, strict=True):
        assert_close(grad, wanted, f"gradient of {name}", 1e-4)


def attention_by_definition(values, config, gate, q_offset=None, kv_length=None, segment_ids=None):
    """Output [B, T, N, H] and chosen blocks {(b, t, kv head): ids}, one query at a time in float64.

    Written from docs/contract.md and nothing else: it shares no code with the package.
    """
    q, k, v, router_q, router_k = (np.asarray(x, np.float64) for x in values)
    (batch, queries, heads, head_dim), (length, kv_heads), size = q.shape, k.shape[1:3], config.block_size
    pool = {"max": np.max, "mean": np.mean}[config.pooling]
    out, chosen = np.zeros(q.shape), {}
    for b in range(batch):
        present = length if kv_length is None else int(kv_length[b])
        offset = present - queries if q_offset is None else int(q_offset[b])
        document = np.zeros(length, int) if segment_ids is None else np.asarray(segment_ids[b])
        for t in range(queries):
            position = offset + t
            if document[position] < 0:
                continue
            start = position
            while start and document[start - 1] == document[position]:
                start -= 1
            first, own = start // size, position // size
            always = [*range(first, first + config.sink_blocks), *range(own - config.local_blocks + 1, own + 1)]
            for head in range(kv_heads):
                scores = {}
                for block in range(first + config.sink_blocks, own - config.local_blocks + 1):
                    summary = pool(router_k[b, block * size : (block + 1) * size, head], axis=0)
                    scores[block] = router_q[b, t, head] @ summary / router_q.shape[3] ** 0.5
                best = sorted(scores, key=lambda block: (-scores[block], block))[: config.num_blocks]
                chosen[b, t, head] = sorted(best)
                seen = [j for j in range(start, position + 1) if j // size in always or j // size in best]
                bias = np.array([scores[j // size] if gate and j // size in best else 0.0 for j in seen])
                for n in range(head * heads // kv_heads, (head + 1) * heads // kv_heads):
                    logits = k[b, seen, head] @ q[b, t, n] / head_dim**0.5 + bias
                    weights = np.exp(logits - logits.max())
                    out[b, t, n] = weights @ v[b, seen, head] / weights.sum()
    return out, chosen
