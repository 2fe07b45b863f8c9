"""Attention of tiles of neighbouring queries to the blocks that any of them sees, on the TPU.

A grid step owns the `m` query tokens of a tile and their G heads: 128 rows, which stand on the lanes. It walks over the
tile's list of blocks, `step` blocks at a time, which it copies from HBM itself, several copies ahead of the arithmetic:

                 128 rows (token, head)                       keys and values of the listed blocks, in HBM
    keys of    [                      ]     copies   ring of       | b3 | b17 | b18 | b40 | ...
    16 blocks  [   logits, weights    ]   <--------  `depth`  <----- one copy a block, keys and values together
    1024 keys  [                      ]              steps

    top, total [ one lane for a row   ]     out^T [H, 128 rows], turned once, at the end

A query takes part in a block only if the block is on its own list: one comparison of the tile's [m, J] ids with the
block's id gives the tokens that see it, and their gates. So there is no table of (query, listed block), neighbours cost
no copies of their own, and one softmax runs over sink, local and selected blocks. With queries on the lanes the queries
are what the matrix unit keeps, for all blocks of the list, and a row's maximum and sum are plain vector operations.

Blocks are added one at a time, in ascending order, and one that a row does not see adds exact zeros: a row's bits are
those of its own blocks, whatever its neighbours chose. Adding a step's blocks at once would save multiplications and
let the choice of a later token show through in the rounding of an earlier one's output.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu.tile import (
    NOTHING,
    PARALLEL,
    AttendSizes,
    ListedBlocks,
    Slots,
    TileOfQueries,
    beside_each_other,
    product,
)
from subq_jax.kernels.xla.tile import NO_KEYS


def attend_forward(q, blocks, seen, lists, offset, slots: Slots, sizes: AttendSizes):
    """One softmax over all listed blocks.

    Args:
      q: [X, P, G, H], P whole tiles.
      blocks: [X, NB, 2, c, H], keys and values of every block, zero where absent.
      seen: float32 [X, P, L], the blocks of every query; see `tile.py`.
      lists: the tiles' unions from `tile_lists`.
      offset: int32 [B], the position of the first query.
      slots: where things stand in `seen`.
      sizes: static sizes.

    Returns:
      out [X, P, G, H] in `q`'s dtype, lse float32 [X, tiles, 1, m * G].
    """
    (rows, padded, group, head_dim), size, tiles = q.shape, blocks.shape[3], lists.shape[1]
    width = padded // tiles * group
    keys = sizes.step(size) * size
    tile = tile_of(width, head_dim)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, group=group, slots=slots, kv_heads=rows // offset.shape[0]),
        grid=(rows, tiles),
        in_specs=[*specs_of_tile(lists, padded // tiles, slots), tile, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=[tile, row_of(width)],
        out_shape=[jax.ShapeDtypeStruct((rows, padded * group, head_dim), q.dtype),
                   jax.ShapeDtypeStruct((rows, tiles, 1, width), jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM((sizes.depth, 2, keys, head_dim), q.dtype),
            pltpu.VMEM((head_dim, width), jnp.float32),
            pltpu.SemaphoreType.DMA((sizes.depth,))],
        compiler_params=PARALLEL,
        name="attend_listed_blocks",
    )(lists, offset, seen, q.reshape(rows, padded * group, head_dim), blocks)
    return out.reshape(q.shape), lse


def specs_of_tile(lists, tokens: int, slots: Slots):
    """Input specs of a tile's list, the queries' offsets, and the tile's part of `seen`."""
    return [pl.BlockSpec((1, 1, 1, lists.shape[-1]), lambda x, t: (x, t, 0, 0), memory_space=pltpu.SMEM),
            pl.BlockSpec(memory_space=pltpu.SMEM),
            tile_of(tokens, slots.lanes)]


def tile_of(rows: int, width: int):
    """The spec of a tile's part of an array [X, tiles * rows, width]."""
    return pl.BlockSpec((1, rows, width), lambda x, t: (x, t, 0))


def row_of(width: int):
    """The spec of a tile's numbers, one for each row: [X, tiles, 1, width]."""
    return pl.BlockSpec((1, 1, 1, width), lambda x, t: (x, t, 0, 0))


def _kernel(list_ref, offset_ref, seen_ref, q_ref, blocks_ref, out_ref, lse_ref, ring, acc, arrived, *,
            group: int, slots: Slots, kv_heads: int):
    x, t = pl.program_id(0), pl.program_id(1)
    tokens = seen_ref.shape[1]
    tile = TileOfQueries(seen_ref[0], offset_ref[x // kv_heads], t * tokens, group, slots)
    listed = ListedBlocks(list_ref, ring, arrived, *beside_each_other(blocks_ref.at[x]))
    top, total = softmax_over(listed, tile, q_ref[0], acc)
    out_ref[0] = (acc[...] / jnp.maximum(total, 1e-37)).T.astype(out_ref.dtype)
    lse_ref[0, 0] = jnp.where(total > 0, top + jnp.log(jnp.maximum(total, 1e-37)), NO_KEYS)


def softmax_over(listed: ListedBlocks, tile: TileOfQueries, q, acc, clear_unseen: bool = False):
    """Leaves the weighted sum of the listed values in `acc` [H, rows]; returns the rows' maxima and sums [1, rows].

    With `clear_unseen` values that no row sees may be anything, NaN too.
    """
    width, head_dim = q.shape
    acc[...] = jnp.zeros_like(acc)

    def body(blocks, keys, values, carry):
        top, total = carry
        products = product(keys, q, (1, 1))
        sums, out = [], acc[...]
        for n, block in enumerate(blocks):
            logits = tile.logits(products[listed.part(n)], block, head_dim)
            higher = jnp.maximum(top, jnp.max(logits, axis=0, keepdims=True))
            weights, shrink = jnp.exp(logits - higher), jnp.exp(top - higher)
            value = values[listed.part(n)]
            if clear_unseen:
                value = jnp.where(jnp.max(weights, axis=1, keepdims=True) > 0, value, jnp.zeros_like(value))
            sums.append((shrink, product(value, weights.astype(value.dtype), (0, 0))))
            total = total * shrink + jnp.sum(weights, axis=0, keepdims=True)
            top = higher
        for shrink, more in sums:
            out = out * shrink + more
        acc[...] = out
        return top, total

    return listed.run(body, (jnp.full((1, width), NOTHING), jnp.zeros((1, width))))
