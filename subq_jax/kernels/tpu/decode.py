"""Attention of a few queries to the blocks that they list, straight from the caches of keys and values, on the TPU.

As in `attend.py`, but nothing is laid out that grows with the cache. A block of the cache holds the keys of all KV
heads, as they are stored:

    cache [B, S, K, H]  read as  [B, S * K, H]            rows of a tile: (token, KV head, query head of its group)

    block b  [ t0 h0 | t0 h1 | t1 h0 | t1 h1 | ... ]      a row takes part where the head is its own

That view costs no copy: a row of lanes is one token's and one head's. A single head cannot be copied alone, because the
heads of a token share a tile of sublanes. So a block is copied once for all heads and tokens of a tile, and where K
heads choose apart, each copies K times what it uses: a gather of the same tokens writes what it read and reads it
again, three times at least. Keys that do not exist may hold anything: values that no row sees are cleared.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu.attend import softmax_over, specs_of_tile, tile_of
from subq_jax.kernels.tpu.tile import PARALLEL, AttendSizes, ListedBlocks, Slots, TileOfQueries


def attend_cache(q, k, v, seen, lists, offset, block_size: int, slots: Slots, sizes: AttendSizes):
    """One softmax over all listed blocks of the caches.

    Args:
      q: [B, P, G, H], P whole tiles of lines; line t * K + h is that of token t and KV head h.
      k, v: the caches [B, S, K, H], S whole blocks.
      seen: float32 [B, P, L], the blocks of every line; see `tile.py`.
      lists: the tiles' unions from `tile_lists`.
      offset: int32 [B], the position of the first query.
      block_size: tokens of a block.
      slots: where things stand in `seen`.
      sizes: static sizes.

    Returns:
      [B, P, G, H] in `q`'s dtype.
    """
    (batch, padded, group, head_dim), kv_heads, tiles = q.shape, k.shape[2], lists.shape[1]
    width, size = padded // tiles * group, block_size * kv_heads
    tile, anywhere = tile_of(width, head_dim), pl.BlockSpec(memory_space=pl.ANY)
    # With one KV head the compiler keeps tokens, not heads, on the sublanes: the views below are the stored bytes.
    rows = lambda x: x.swapaxes(1, 2)[:, 0] if kv_heads == 1 else x.reshape(batch, -1, head_dim)
    out = pl.pallas_call(
        functools.partial(_kernel, group=group, slots=slots, kv_heads=kv_heads, size=size),
        grid=(batch, tiles),
        in_specs=[*specs_of_tile(lists, padded // tiles, slots), tile, anywhere, anywhere],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct((batch, padded * group, head_dim), q.dtype),
        scratch_shapes=[
            pltpu.VMEM((sizes.depth, 2, sizes.step(size) * size, head_dim), q.dtype),
            pltpu.VMEM((head_dim, width), jnp.float32),
            pltpu.SemaphoreType.DMA((sizes.depth,))],
        compiler_params=PARALLEL,
        name="attend_cache",
    )(lists, offset, seen, q.reshape(batch, padded * group, head_dim), rows(k), rows(v))
    return out.reshape(q.shape)


def _kernel(list_ref, offset_ref, seen_ref, q_ref, k_ref, v_ref, out_ref, ring, acc, arrived, *,
            group: int, slots: Slots, kv_heads: int, size: int):
    x, t = pl.program_id(0), pl.program_id(1)
    tokens, count = seen_ref.shape[1], k_ref.shape[1] // size
    tile = TileOfQueries(seen_ref[0], offset_ref[x], t * tokens, group, slots, kv_heads)

    def fetch(block, room):
        rows = pl.ds(pl.multiple_of(block * size, size), size)
        return [(cache.at[x, rows], room.at[n]) for n, cache in enumerate((k_ref, v_ref))]

    listed = ListedBlocks(list_ref, ring, arrived, size, count, fetch)
    _, total = softmax_over(listed, tile, q_ref[0], acc, clear_unseen=True)
    out_ref[0] = (acc[...] / jnp.maximum(total, 1e-37)).T.astype(out_ref.dtype)
