"""Gradients of queries and gates: the forward pass's walk over every tile's blocks again, with its log-sum-exps.

    weights    W  = exp(Q K^T + gates - lse)         [16, keys]   of a warp's rows and a step
    logits     dL = W * (dO V^T - delta)
    queries    dQ = sum over steps of dL K
    gates      the sum of dL over a token's rows and a block's positions

A warpgroup multiplies every block that one of its warps sees at once, as far as blocks are large enough (`warps.py`).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import tensor_core
from subq_jax.kernels.gpu.lists import TileBlocks, TokenLists
from subq_jax.kernels.gpu.persistent import for_each_item, launch, matrix
from subq_jax.kernels.gpu.registers import by_row, constant
from subq_jax.kernels.gpu.softmax import LOG2E
from subq_jax.kernels.gpu.tensor_core import ACC, ROWS
from subq_jax.kernels.gpu.warps import WARP_REGISTERS, BlockWalk, WarpTile, WarpTokens, hide_future

RING_BYTES = 128 << 10  # of shared memory for keys and values
MIN_WARPS = 1  # warps that see a block for all four to multiply it: with both ways of doing so registers would spill


def backward_queries(q, d_out, lse, delta, k, v, lists: TokenLists, blocks: TileBlocks, offset, shape: WarpTile,
                     ctas: int):
    """Gradients along the lists.

    Args:
      q, d_out: rows [X, P * G, H], token by token, of a tile at least.
      lse, delta: float32 [X, P * G], the forward pass's log-sum-exps and each row's sum of output times `d_out`.
      k, v: [X, S, H]; S is a multiple of the block size.
      lists: what every token sees, [X, P, J].
      blocks: what the tokens of every tile see.
      offset: int32 [X], position of the first token.
      shape: of the tiles.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      the gradient of `q`, and that of `lists.gates`, whose places without a block hold anything.
    """
    (count, _, head_dim), (_, padded, slots), workers = q.shape, lists.ids.shape, shape.workers
    ctas, held = min(ctas, blocks.entries.size), shape.warpgroup_rows
    scratch = {
        "q_buffer": matrix(workers, held, head_dim, dtype=q.dtype),
        "d_out_buffer": matrix(workers, held, head_dim, dtype=q.dtype),
        "rows_full": plgpu.Barrier(num_arrivals=2, num_barriers=workers),
        "rows_free": plgpu.Barrier(num_barriers=workers),
    } | shape.rings(RING_BYTES, head_dim, q.dtype)

    of_parts = (count, padded, slots, shape.parts * shape.warps_per_token)
    results = [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(of_parts, jnp.float32)]
    arguments = q, d_out, lse, delta, k, v, lists.ids, lists.gates, blocks.entries, blocks.blocks, offset
    kernel = functools.partial(_kernel, shape=shape, ctas=ctas)
    dq, d_gates = launch(kernel, results, scratch, ctas, arguments, workers=workers)
    return dq, d_gates.sum(axis=3)


def _kernel(q, d_out, lse, delta, k, v, ids, gates, entries, blocks, offset, dq, d_gates, *, q_buffer, d_out_buffer,
            k_ring, v_ring, rows_full, rows_free, full, free, shape: WarpTile, ctas: int):
    warpgroup, (workers, held, head_dim) = lax.axis_index("warpgroup"), q_buffer.shape
    walk = BlockWalk(shape, entries, blocks, full, free, k_ring.shape[0], MIN_WARPS)
    rows_of = functools.partial(shape.rows, tokens=ids.shape[1])

    @pl.when(warpgroup < workers)
    def _():
        plgpu.set_max_registers(WARP_REGISTERS[0], action="increase")
        mine, queries = WarpTokens(shape, warpgroup, ids, gates), q_buffer.at[warpgroup]
        scale = LOG2E / math.sqrt(head_dim)

        def one_tile(x, tile, _, ring):
            rows, tokens = rows_of(tile, warpgroup), mine.of_tile(x, tile)
            first = offset[x] + tokens.first
            log_sums, deltas = (plgpu.load(y.at[x, rows], layout=ROWS, optimized=False) for y in (lse, delta))
            log_sums = log_sums * LOG2E

            def look(step, here, places, gate, total):
                logits = step.products.scores(queries, k_ring.at[step.slot])
                d_weights = step.products.scores(d_out_buffer.at[warpgroup], v_ring.at[step.slot])
                logits = hide_future(logits, step, shape.keys, mine, first)
                weights = jnp.exp2(logits * scale - by_row(log_sums - gate, logits))
                d_logits = weights * (d_weights - by_row(deltas, logits))
                of_tokens = tensor_core.sums_of_warp(d_logits.sum(axis=1), shape.tokens_per_warp)
                part = step.part * shape.warps_per_token + mine.share
                for token, some, place, number in zip(tokens.each, here, places, of_tokens, strict=True):
                    @pl.when(some)
                    def _(token=token, place=place, number=number):
                        d_gates[x, token, place, part] = number
                return step.products.add(total, d_logits.astype(q.dtype), k_ring.at[step.slot])

            plgpu.barrier_wait(rows_full.at[warpgroup])
            total = walk.each(x, tile, ring, warpgroup, tokens, look, constant(0, (held, head_dim), ACC))
            plgpu.commit_smem()  # no warp reads its queries any more
            queries[...] = (total * (1 / math.sqrt(head_dim))).astype(q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, dq.at[x, rows])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(rows_free.at[warpgroup])
            return ring + walk.steps(x, tile)

        for_each_item(*entries.shape, ctas, one_tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == workers)
    def _():
        plgpu.set_max_registers(WARP_REGISTERS[1], action="decrease")
        rows, rings = ((q, q_buffer), (d_out, d_out_buffer)), ((k, k_ring), (v, v_ring))
        walk.copy_tiles(ctas, rows_of, rows, rows_full, rows_free, rings)
