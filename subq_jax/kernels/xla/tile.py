"""Attention of one tile of query rows over one tile of keys, forward and backward, in plain XLA.

Leading axes are free (`...`); `m` query tokens, `G` heads of a KV head, `n` keys:

    q [..., m, G, H]   k, v [..., n, H]   bias, visible broadcast to [..., m, G, n]

Partial results of several tiles merge by their log-sum-exp, as in FlashAttention (arXiv 2205.14135).
"""

import functools
import math

import jax
import jax.numpy as jnp

from subq_jax.selection.choose import matmul_precision

NO_KEYS = -1e30  # log-sum-exp of a row that sees nothing; finite, so that differences stay finite


def _matmul(equation, a, b, dtype=jnp.float32):
    return jnp.einsum(equation, a, b, precision=matmul_precision(a.dtype), preferred_element_type=dtype)


def _over_keys(rows, keys):
    """[..., m, G, H] x [..., n, H] -> [..., m, G, n]."""
    return _matmul("...mgh,...nh->...mgn", rows, keys)


def _over_features(weights, keys, dtype=jnp.float32):
    """[..., m, G, n] x [..., n, H] -> [..., m, G, H], summed in float32 and rounded to `dtype`."""
    return _matmul("...mgn,...nh->...mgh", weights, keys, dtype)


def _over_rows(weights, rows):
    """[..., m, G, n] x [..., m, G, H] -> [..., n, H], with (m, G) as one axis: XLA contracts two axes slowly on CPU."""
    join = lambda x: x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])
    return _matmul("...rn,...rh->...nh", join(weights), join(rows))


def tile_logits(q, k, bias):
    """`q.k / sqrt(H) + bias`, float32 [..., m, G, n]."""
    return _over_keys(q, k) * (q.shape[-1] ** -0.5) + bias


def tile_forward(q, k, v, bias, visible):
    """Softmax attention over the tile alone: float32 (out [..., m, G, H], lse [..., m, G])."""
    logits = jnp.where(visible, tile_logits(q, k, bias), NO_KEYS)
    top = jax.lax.stop_gradient(logits).max(axis=-1, keepdims=True)
    weights = jnp.where(visible, jnp.exp(logits - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    out = _over_features(weights.astype(v.dtype), v) / jnp.maximum(total, 1e-37)
    lse = jnp.where(total > 0, top + jnp.log(jnp.maximum(total, 1e-37)), NO_KEYS)
    return out, lse[..., 0]


def tile_partial(q, k, v):
    """The tile's part of a softmax, all of it visible: (out [..., m, G, H], top [..., m, G], norm [..., m, G]).

    `out` is the sum of `exp(logit - top) * v` in `q`'s dtype, so that it need not be divided before parts are merged:
    of several parts `exp(top - largest top)` weighs `out` and `norm`, the sum of `exp(logit - top)`, and a row's result
    is the one sum over the other. `top` and `norm` are float32. `top` is the largest logit and log n above it: the
    weights then sum to 1 at most, and no sum of values is beyond float16.
    """
    logits = tile_logits(q, k, 0.0)
    top = jax.lax.stop_gradient(logits).max(axis=-1, keepdims=True) + math.log(k.shape[-2])
    weights = jnp.exp(logits - top)
    return _over_features(weights.astype(v.dtype), v, q.dtype), top[..., 0], weights.sum(axis=-1)


def tile_backward(q, k, v, bias, visible, d_out, lse, delta, dq_dtype=jnp.float32):
    """Gradients of the tile's part of a softmax whose final log-sum-exp is `lse` [..., m, G].

    `delta` [..., m, G] is `row_delta`. Returns (dq in `dq_dtype`, and float32 dk, dv, d_logits [..., m, G, n]).
    """
    logits = tile_logits(q, k, bias)
    weights = jnp.where(visible, jnp.exp(jnp.where(visible, logits, NO_KEYS) - lse[..., None]), 0.0)
    d_weights = _over_keys(d_out, v)
    d_logits = weights * (d_weights - delta[..., None])
    scaled = (d_logits * (q.shape[-1] ** -0.5)).astype(q.dtype)
    dq = _over_features(scaled, k, dq_dtype)
    dk = _over_rows(scaled, q)
    dv = _over_rows(weights.astype(v.dtype), d_out)
    return dq, dk, dv, d_logits


def row_delta(d_out, out):
    """Row sums of `d_out * out` in float32: what a softmax's backward takes from every weight's gradient."""
    return (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)


def merge(parts):
    """Merges partial results [(out [..., H], lse [...]), ...] over disjoint keys into one (out, lse)."""
    out, lse = functools.reduce(merge_two, ((out, lse[..., None]) for out, lse in parts))
    return jnp.where(lse > NO_KEYS / 2, out, 0.0), lse[..., 0]


def merge_two(one, other):
    """Two partial results (out, lse) as one, where `lse` broadcasts to `out`.

    Weights are shares of the two, which add up to 1 however much of a large log-sum-exp is rounded away.
    """
    (out, lse), (other_out, other_lse) = one, other
    out = jax.lax.logistic(lse - other_lse) * out + jax.lax.logistic(other_lse - lse) * other_out
    return out, jnp.logaddexp(lse, other_lse)
