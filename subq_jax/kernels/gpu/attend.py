"""Attention of every token to the blocks that it lists, on Hopper.

One block of threads per multiprocessor walks over tiles of 192 rows (`warps.py`). Each warp multiplies its 16 rows with
the blocks of its own tokens alone and passes over those that only its neighbours see, so that work hardly depends on
how much neighbours agree; where three of a warpgroup's four warps see a block all multiply it at once, which reads it
from shared memory once. Warps go their own way between copies and such blocks; within one, the products of scores, the
softmax and the products with values follow each other, and other warps fill the gaps.

The online softmax is FlashAttention-2's (arXiv 2307.08691), warps that copy for others FlashAttention-3's
(arXiv 2407.08608).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.lists import TileBlocks, TokenLists
from subq_jax.kernels.gpu.persistent import for_each_item, launch, matrix
from subq_jax.kernels.gpu.registers import by_row
from subq_jax.kernels.gpu.softmax import LOG2E, softmax_end, softmax_start, softmax_step
from subq_jax.kernels.gpu.warps import WARP_REGISTERS, BlockWalk, WarpTile, WarpTokens, hide_future

RING_BYTES = 160 << 10  # of shared memory for keys and values
MIN_WARPS = 3  # warps of a warpgroup that see a block for all four to multiply it at once


def attend(q, k, v, lists: TokenLists, blocks: TileBlocks, offset, shape: WarpTile, ctas: int):
    """Outputs and log-sum-exps.

    Args:
      q: rows [X, P * G, H], token by token; P is at least a tile's tokens, G filled up as `group_rows` says.
      k, v: [X, S, H]; S is a multiple of the block size.
      lists: what every token sees, [X, P, J].
      blocks: what the tokens of every tile see.
      offset: int32 [X], position of the first token.
      shape: of the tiles.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      outputs [X, P * G, H] in `q`'s dtype and log-sum-exps float32 [X, P * G]; 0 and -7e28 for rows that see nothing.
    """
    (count, rows, head_dim), workers = q.shape, shape.workers
    ctas, held = min(ctas, blocks.entries.size), shape.warpgroup_rows
    scratch = {
        "q_buffer": matrix(workers, held, head_dim, dtype=q.dtype),
        "lse_buffer": plgpu.SMEM((workers, held), jnp.float32),
        "q_full": plgpu.Barrier(num_barriers=workers),
        "q_free": plgpu.Barrier(num_barriers=workers),
    } | shape.rings(RING_BYTES, head_dim, q.dtype)

    results = [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((count, rows), jnp.float32)]
    arguments = q, k, v, lists.ids, lists.gates, blocks.entries, blocks.blocks, offset
    kernel = functools.partial(_kernel, shape=shape, ctas=ctas)
    return launch(kernel, results, scratch, ctas, arguments, workers=workers)


def _kernel(q, k, v, ids, gates, entries, blocks, offset, out, lse, *, q_buffer, k_ring, v_ring, lse_buffer, q_full,
            q_free, full, free, shape: WarpTile, ctas: int):
    warpgroup, (workers, held, head_dim) = lax.axis_index("warpgroup"), q_buffer.shape
    walk = BlockWalk(shape, entries, blocks, full, free, k_ring.shape[0], MIN_WARPS)
    rows_of = functools.partial(shape.rows, tokens=ids.shape[1])

    @pl.when(warpgroup < workers)
    def _():
        plgpu.set_max_registers(WARP_REGISTERS[0], action="increase")
        mine, queries = WarpTokens(shape, warpgroup, ids, gates), q_buffer.at[warpgroup]
        scale = LOG2E / math.sqrt(head_dim)

        def one_tile(x, tile, _, ring):
            tokens = mine.of_tile(x, tile)
            first = offset[x] + tokens.first

            def look(step, here, places, gate, state):
                sums, top, norm = state
                logits = step.products.scores(queries, k_ring.at[step.slot])
                logits = hide_future(logits, step, shape.keys, mine, first)
                weights, shrink, top, norm = softmax_step(logits, scale, gate, top, norm)
                sums = step.products.add(sums * by_row(shrink, sums), weights.astype(q.dtype), v_ring.at[step.slot])
                return sums, top, norm

            plgpu.barrier_wait(q_full.at[warpgroup])
            start = softmax_start(held, head_dim)
            outputs, log_sums = softmax_end(*walk.each(x, tile, ring, warpgroup, tokens, look, start))

            rows = rows_of(tile, warpgroup)
            plgpu.commit_smem()  # no warp reads its queries any more
            queries[...] = outputs.astype(q.dtype)
            lse_buffer[warpgroup] = log_sums
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, out.at[x, rows])
            plgpu.copy_smem_to_gmem(lse_buffer.at[warpgroup], lse.at[x, rows])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(q_free.at[warpgroup])
            return ring + walk.steps(x, tile)

        for_each_item(*entries.shape, ctas, one_tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == workers)
    def _():
        plgpu.set_max_registers(WARP_REGISTERS[1], action="decrease")
        walk.copy_tiles(ctas, rows_of, ((q, q_buffer),), q_full, q_free, ((k, k_ring), (v, v_ring)))
