"""Gradients of keys, values and summaries on the TPU: a block walks over the tiles of queries that list it.

A grid step owns one block and all that is added to it, so that nothing is added by two at once. Its tiles are a run of
the inverse of the tiles' lists, read 128 names at a time into scalar memory; queries, gradients of outputs and what
the tiles' tokens see are copied ahead of the arithmetic:

    block's keys, values [c, H] stay       tile t17: q, d_out [128 rows, H], lse, delta, seen
    dK += d_logits . q / sqrt(H)           tile t40: ...
    dV += weights . d_out                  tile t41: ...
    d_summary += d_gate . router query     in ascending order, so that every run gives the same bits

A block that every query sees is the longest such walk, of all tiles; a mean block's is budget / length of it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu.lists import NAMES
from subq_jax.kernels.tpu.tile import PARALLEL, AttendSizes, Ring, Slots, TileOfQueries, product


def backward_keys(q, d_out, stats, blocks, seen, runs, names, offset, slots: Slots, sizes: AttendSizes,
                  dtype=jnp.float32):
    """Gradients of keys and values, and of summaries before their scale.

    Args:
      q: [X, P, G, H]; d_out: its like.
      stats: float32 [X, tiles, 2, m * G], log-sum-exp and delta of every row.
      blocks, seen, offset, slots, sizes: as in `attend_forward`.
      runs, names: which tiles list a block, from `tiles_of_blocks`.
      dtype: of the gradients of keys and values; float32 where more is added to them.

    Returns:
      d_blocks in `dtype`, shaped like `blocks`, and float32 [X, NB, R]: the sum over the tokens that selected the block
      of their router query times the gradient of their gate; one zero for each block without router queries in `seen`.
    """
    (rows, padded, group, head_dim), tiles, router = q.shape, stats.shape[1], slots.router
    (num_blocks, _, size), tokens = blocks.shape[1:4], padded // tiles
    width, anywhere = tokens * group, pl.BlockSpec(memory_space=pl.ANY)
    whole = lambda x: x.reshape(rows, padded * group, head_dim)
    of_block = lambda *shape: pl.BlockSpec((1, 1, *shape), lambda x, b: (x, b, *[0] * len(shape)))
    room = lambda shape, dtype: pltpu.VMEM((sizes.depth, sizes.tiles, *shape), dtype)
    d_blocks, d_summaries = pl.pallas_call(
        functools.partial(_kernel, group=group, slots=slots, kv_heads=rows // offset.shape[0]),
        grid=(rows, num_blocks),
        in_specs=[pl.BlockSpec((1, 1, 1, 2), lambda x, b: (x, b, 0, 0), memory_space=pltpu.SMEM),
                  pl.BlockSpec(memory_space=pltpu.SMEM), of_block(2, size, head_dim), *[anywhere] * 5],
        out_specs=[of_block(2, size, head_dim), of_block(1, max(router, 1))],
        out_shape=[jax.ShapeDtypeStruct(blocks.shape, dtype),
                   jax.ShapeDtypeStruct((rows, num_blocks, 1, max(router, 1)), jnp.float32)],
        scratch_shapes=[
            pltpu.SMEM((1, NAMES), jnp.int32), room((width, head_dim), q.dtype), room((width, head_dim), q.dtype),
            room((2, width), jnp.float32), room((tokens, slots.lanes), jnp.float32),
            pltpu.VMEM((2, size, head_dim), jnp.float32), pltpu.VMEM((1, max(router, 1)), jnp.float32),
            pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.DMA((sizes.depth,))],
        compiler_params=PARALLEL,
        name="backward_keys",
    )(runs, offset, blocks, names, whole(q), whole(d_out), stats, seen)
    return d_blocks, d_summaries[:, :, 0]


def _kernel(run_ref, offset_ref, block_ref, names_ref, q_ref, d_out_ref, stats_ref, seen_ref, d_block_ref,
            d_summary_ref, name, q_ring, d_out_ring, stats_ring, seen_ring, acc, side, named, arrived, *,
            group: int, slots: Slots, kv_heads: int):
    x, b = pl.program_id(0), pl.program_id(1)
    depth, together, width, head_dim = q_ring.shape
    tokens, offset = width // group, offset_ref[x // kv_heads]
    keys, values = block_ref[0, 0, 0], block_ref[0, 0, 1]
    begin, end = run_ref[0, 0, 0, 0], run_ref[0, 0, 0, 1]
    acc[...] = jnp.zeros_like(acc)
    side[...] = jnp.zeros_like(side)

    def add(q, d_out, stats, tile, block):
        logits = tile.logits(product(keys, q, (1, 1)), block, head_dim)
        weights = jnp.exp(logits - stats[0:1])
        d_logits = weights * (product(values, d_out, (1, 1)) - stats[1:2])
        acc[0] += product((d_logits * head_dim**-0.5).astype(q.dtype), q, (1, 0))
        acc[1] += product(weights.astype(q.dtype), d_out, (1, 0))
        if slots.router:
            d_gate = tile.over_heads(jnp.sum(d_logits, axis=0, keepdims=True))
            chosen = jnp.where(tile.lists(block) & tile.selected, 1.0, 0.0)
            d_gate = d_gate * jnp.max(chosen, axis=1, keepdims=True)
            side[...] += jnp.sum(d_gate * tile.router, axis=0, keepdims=True)

    def page(p, carry):
        pltpu.make_async_copy(names_ref.at[x, p], name, named).start()
        pltpu.make_async_copy(names_ref.at[x, p], name, named).wait()
        first, last = jnp.maximum(begin - p * NAMES, 0), jnp.minimum(end - p * NAMES, NAMES)
        at = lambda i, n: first + i * together + n
        tile_at = lambda i, n: name[0, jnp.minimum(at(i, n), last - 1)]  # behind the end the last tile again

        def copies(i, slot):
            pairs = []
            for n in range(together):
                t = tile_at(i, n)
                rows = pl.ds(pl.multiple_of(t * width, width), width)
                pairs += [(q_ref.at[x, rows], q_ring.at[slot, n]), (d_out_ref.at[x, rows], d_out_ring.at[slot, n]),
                          (stats_ref.at[x, t], stats_ring.at[slot, n]),
                          (seen_ref.at[x, pl.ds(pl.multiple_of(t * tokens, tokens), tokens)], seen_ring.at[slot, n])]
            return pairs

        def body(i, slot, carry):
            for n in range(together):
                tile = TileOfQueries(seen_ring[slot, n], offset, tile_at(i, n) * tokens, group, slots)
                add(q_ring[slot, n], d_out_ring[slot, n], stats_ring[slot, n], tile, jnp.where(at(i, n) < last, b, -1))
            return carry

        return Ring(pl.cdiv(last - first, together), depth, arrived, copies).run(body, carry)

    jax.lax.fori_loop(begin // NAMES, pl.cdiv(end, NAMES), page, 0)
    d_block_ref[0, 0] = acc[...].astype(d_block_ref.dtype)
    d_summary_ref[0, 0] = side[...]
