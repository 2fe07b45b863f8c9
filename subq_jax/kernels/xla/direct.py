"""Attention of a few queries to blocks listed by id: decoding.

Sorting entries by block pays when many queries share blocks. A few queries read less by gathering the very tokens that
they see, straight from the cache: nothing here costs anything that grows with the cache's length.
"""

import jax.numpy as jnp

from subq_jax.kernels.xla.tile import tile_forward


def direct_forward(q, k, v, ids, bias, lower, position, block_size: int, reach: int):
    """One softmax over the local tokens and the listed blocks: float32 (out [X, T, G, H], lse [X, T, G]).

    q [X, T, G, H]; k and v [B, S, K, H] as they are cached, with anything at absent keys; ids int32 [X, T, J], -1 for
    none, and bias float32 [X, T, J]; rows see the positions from `lower` to `position` [X, T], at most `reach` apart,
    and all of the listed blocks. X = B * K.
    """
    (rows, queries, slots), kv_heads, size = ids.shape, k.shape[2], block_size
    local = lower[..., None] + jnp.arange(reach + 1, dtype=jnp.int32)[None, None]
    listed = ids[..., None] * size + jnp.arange(size, dtype=jnp.int32)[None, None, None]
    token = jnp.concatenate([listed.reshape(rows, queries, slots * size), local], axis=-1)
    visible = jnp.concatenate([jnp.repeat(ids >= 0, size, axis=-1), local <= position[..., None]], axis=-1)
    weight = jnp.concatenate([jnp.repeat(bias, size, axis=-1), jnp.zeros(local.shape)], axis=-1)

    row = jnp.arange(rows, dtype=jnp.int32)[:, None, None]
    token = jnp.where(visible, token, 0)
    keys, values = (jnp.where(visible[..., None], x[row // kv_heads, token, row % kv_heads], 0) for x in (k, v))
    out, lse = tile_forward(q[:, :, None], keys, values, weight[:, :, None, None], visible[:, :, None, None])
    return out[:, :, 0], lse[:, :, 0]
