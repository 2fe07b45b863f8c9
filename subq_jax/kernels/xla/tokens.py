"""Attention of every query to single tokens listed by id: for selectors that choose tokens, not blocks.

Forward, each query gathers the keys and values that it lists, a chunk of queries at a time. Backward, the same rows are
a mask over all keys: that costs dense attention, but adds gradients of keys up by matrix products, in a fixed order,
where the transpose of a gather would be a scatter. Shapes: q [X, T, G, H], k and v [X, S, H], ids int32 [X, T, J] (-1
for none, no repeats); X = B * K.
"""

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.dense import chunk_rows
from subq_jax.kernels.xla.layout import join_rows, map_query_chunks, split_rows
from subq_jax.kernels.xla.tile import row_delta, tile_backward, tile_forward


@jax.custom_vjp
def listed_attention(q, k, v, ids):
    """Softmax over the listed tokens, [X, T, G, H] in `q`'s dtype; 0 where none is listed."""
    return _attend_forward(q, k, v, ids)[0]


def _attend_forward(q, k, v, ids):
    take = jax.vmap(lambda table, ids: jnp.take(table, ids, axis=0, mode="clip"))

    def chunk(args):
        q, ids = args
        listed = (ids >= 0)[:, :, None, None]
        out, lse = tile_forward(q[:, :, None], take(k, ids), take(v, ids), 0.0, listed)
        return out[:, :, 0].astype(q.dtype), lse[:, :, 0]

    rows = chunk_rows(q.shape[0] * ids.shape[2] * q.shape[3])
    out, lse = map_query_chunks(chunk, (q, ids), rows)
    return out, (q, k, v, ids, out, lse)


def _attend_backward(residuals, d_out):
    q, k, v, ids, out, lse = residuals
    length = k.shape[1]

    def chunk(sums, args):
        q, ids, d_out, lse, delta = args
        place = jnp.where(ids < 0, length, ids)
        mark = jax.vmap(jax.vmap(lambda ids: jnp.zeros(length, bool).at[ids].set(True, mode="drop")))
        dq, dk, dv, _ = tile_backward(q, k, v, 0.0, mark(place)[:, :, None], d_out, lse, delta)
        return (sums[0] + dk, sums[1] + dv), dq

    rows = min(q.shape[1], chunk_rows(q.shape[0] * q.shape[2] * length))
    fills = ((q, 0), (ids, -1), (d_out, 0), (lse, 0), (row_delta(d_out, out), 0))
    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (k, v))
    (dk, dv), dq = jax.lax.scan(chunk, zeros, tuple(split_rows(x, rows, fill) for x, fill in fills))
    return join_rows(dq, q.shape[1]).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


listed_attention.defvjp(_attend_forward, _attend_backward)
