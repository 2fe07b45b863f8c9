"""Gradients of keys, values and summaries: every block gathers the rows of the tokens that see it.

A block's keys and values stay in shared memory while the queries of its tokens, and the outputs' gradients, pass by, 64
rows at a time. Scores stand transposed, so that weights enter the tensor core from registers:

    weights    W^T  = exp(K Q^T + gates - lse)      [64 positions, 64 rows]
    values     dV  += W^T dO
    keys       dK  += (W^T * (V dO^T - delta)) Q

Blocks of 128 positions are shared by the two warpgroups that compute; of smaller ones each takes every other step, and
always the same slots of the ring, since a warpgroup that misses a barrier's news once has lost count. No two add to one
place: pieces of a block's tokens, and both warpgroups, leave partial sums that a second kernel adds in order.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import tensor_core
from subq_jax.kernels.gpu.inverse import InverseLists
from subq_jax.kernels.gpu.persistent import (
    PRODUCER,
    PRODUCT_ROWS,
    REGISTERS,
    WORKERS,
    drain,
    for_each_item,
    launch,
    matrix,
)
from subq_jax.kernels.gpu.registers import constant
from subq_jax.kernels.gpu.softmax import LOG2E, UNSEEN
from subq_jax.kernels.gpu.tensor_core import ACC, COLUMNS, ROWS

STAGES = 4  # steps in shared memory
LINE = 32  # float32 numbers in 128 bytes, where a copy into shared memory may begin


class BlockShape(NamedTuple):
    """Static sizes."""

    group: int  # rows of a token
    block: int  # positions

    @property
    def parts(self) -> int:
        """Products that hold a block's positions."""
        return max(1, self.block // PRODUCT_ROWS)


def backward_keys(q, d_out, lse, delta, router_q, k, v, inverse: InverseLists, offset, group: int, block: int,
                  ctas: int):
    """Gradients along the inverse lists.

    Args:
      q, d_out: rows [X, P * G, H], token by token.
      lse, delta: float32 [X, P * G], the forward pass's log-sum-exps and each row's sum of output times `d_out`.
      router_q: [X, P, R].
      k, v: [X, S, H]; S is a multiple of `block`.
      inverse: the tokens of every block; `weights` are the gradients of its scores.
      offset: int32 [X], position of the first token.
      group: rows of a token.
      block: positions of a block.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      the gradients of `k` and `v`, in their dtype, and for every block the sum of its tokens' `router_q` times their
      weights, float32 [X, NB, R].
    """
    (count, length, head_dim), width, blocks = k.shape, router_q.shape[2], k.shape[1] // block
    shape = BlockShape(group, block)
    pieces = inverse.pieces.shape[1]
    if block < PRODUCT_ROWS:  # a product has 64 rows: the next block's positions fill it up and take no part
        k, v = (jnp.pad(x, ((0, 0), (0, PRODUCT_ROWS - block), (0, 0))) for x in (k, v))
    step_tokens = PRODUCT_ROWS // shape.group
    stats = jnp.concatenate([x.reshape(count, -1, shape.group) for x in (lse, delta)], axis=2)
    stats = jnp.pad(stats, ((0, 0), (0, 0), (0, max(0, LINE - 2 * shape.group))))
    scratch = {
        "k_buffer": matrix(shape.parts, PRODUCT_ROWS, head_dim, dtype=q.dtype),
        "v_buffer": matrix(shape.parts, PRODUCT_ROWS, head_dim, dtype=q.dtype),
        "q_ring": matrix(STAGES, PRODUCT_ROWS, head_dim, dtype=q.dtype),
        "d_out_ring": matrix(STAGES, PRODUCT_ROWS, head_dim, dtype=q.dtype),
        "stats_ring": plgpu.SMEM((STAGES, step_tokens, stats.shape[2]), jnp.float32),
        "router_ring": plgpu.SMEM((STAGES, step_tokens, width), router_q.dtype),
        "block_full": plgpu.Barrier(num_arrivals=2 * shape.parts),
        "block_free": plgpu.Barrier(num_arrivals=WORKERS),
        "full": plgpu.Barrier(num_arrivals=4 * step_tokens, num_barriers=STAGES),
        "free": plgpu.Barrier(num_arrivals=shape.parts, num_barriers=STAGES),
    }
    of_warpgroup = lambda *s: jax.ShapeDtypeStruct((count, pieces, WORKERS, *s), jnp.float32)
    results = [of_warpgroup(PRODUCT_ROWS, head_dim), of_warpgroup(PRODUCT_ROWS, head_dim), of_warpgroup(width)]
    arguments = (q, d_out, stats, router_q, k, v, inverse.tokens, inverse.gates, inverse.weights, inverse.pieces,
                 offset)
    busy = min(ctas, count * pieces)
    kernel = functools.partial(_kernel, shape=shape, ctas=busy)  # nobody writes into shared memory but copies
    parts = launch(kernel, results, scratch, busy, arguments)
    dk, dv, side = _add_pieces(parts, inverse.first, shape.parts, q.dtype, min(ctas, count * blocks))
    join = lambda x: x.reshape(count, blocks, -1, head_dim)[:, :, :block].reshape(count, length, head_dim)
    return join(dk), join(dv), side


def _kernel(q, d_out, stats, router_q, k, v, tokens, gates, weights, pieces, offset, dk_out, dv_out, side_out, *,
            k_buffer, v_buffer, q_ring, d_out_ring, stats_ring, router_ring, block_full, block_free, full, free,
            shape: BlockShape, ctas: int):
    warpgroup = lax.axis_index("warpgroup")
    (head_dim, width), group, step_tokens = (q.shape[2], router_q.shape[2]), shape.group, PRODUCT_ROWS // shape.group
    every = WORKERS if shape.parts == 1 else 1  # of how many steps a warpgroup takes one
    rounds_of = lambda pairs: lax.div(pairs + (every * step_tokens - 1), jnp.int32(every * step_tokens))
    slot_of = lambda step: lax.rem(step, jnp.int32(STAGES))

    @pl.when(warpgroup < WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        mine, turn = (warpgroup, jnp.int32(0)) if every == 1 else (jnp.int32(0), warpgroup)
        masks = _token_masks(group, plgpu.broadcasted_iota(jnp.int32, (PRODUCT_ROWS,), 0, layout=COLUMNS))
        row = plgpu.broadcasted_iota(jnp.int32, (PRODUCT_ROWS, PRODUCT_ROWS), 0, layout=ACC) + mine * PRODUCT_ROWS
        of_rows = lambda slot, token, which: plgpu.load(
            stats_ring.at[slot, token, pl.ds(which * group, group)], layout=COLUMNS, optimized=False)
        down = lambda x: lax.broadcast_in_dim(x, (PRODUCT_ROWS, PRODUCT_ROWS), [1])
        scale = LOG2E / math.sqrt(head_dim)

        def piece(x, number, _, ring):
            block, begin, edge, end = (pieces[x, number, j] for j in range(4))
            rounds = rounds_of(end - begin)
            plgpu.barrier_wait(block_full)

            def step(i, sums, at_edge: bool):
                dk, dv, side = sums
                s = i * every + turn
                slot, pair = slot_of(ring + s), begin + s * step_tokens
                inside = [pair + j < end for j in range(step_tokens)]
                at = [jnp.minimum(pair + j, end - 1) for j in range(step_tokens)]
                gate = [jnp.where(some, gates[x, e] * LOG2E, UNSEEN) for some, e in zip(inside, at, strict=True)]
                weigh = [jnp.where(some & (mine == 0), weights[x, e], 0.0) for some, e in zip(inside, at, strict=True)]
                plgpu.barrier_wait(full.at[slot])
                logits, d_weights = tensor_core.two_scores(
                    k_buffer.at[mine], q_ring.at[slot], v_buffer.at[mine], d_out_ring.at[slot])
                sums, deltas = (lax.concatenate([of_rows(slot, j, which) for j in range(step_tokens)], 0)
                                for which in range(2))
                weight = jnp.exp2(logits * scale - down(sums * LOG2E - _spread(masks, gate)))
                if at_edge:
                    first = offset[x] - block * shape.block
                    last = [jnp.clip(tokens[x, e] + first, -1, shape.block - 1).astype(jnp.float32) for e in at]
                    weight = jnp.where(row.astype(jnp.float32) <= down(_spread(masks, last)), weight, 0.0)
                d_logits = weight * (d_weights - down(deltas))
                dv, dk = tensor_core.add_two_products(
                    dv, weight.astype(q.dtype), d_out_ring.at[slot], dk, d_logits.astype(q.dtype), q_ring.at[slot])
                for j in range(step_tokens):
                    row_q = plgpu.load(router_ring.at[slot, j], layout=ROWS, optimized=False)
                    side = side + row_q.astype(jnp.float32) * weigh[j]
                plgpu.barrier_arrive(free.at[slot])
                return dk, dv, side

            at_edge = rounds_of(edge - begin) if shape.block >= PRODUCT_ROWS else rounds
            sums = *(constant(0, (PRODUCT_ROWS, head_dim), ACC) for _ in range(2)), constant(0, (width,), ROWS)
            sums = lax.fori_loop(jnp.int32(0), at_edge, functools.partial(step, at_edge=True), sums)
            dk, dv, side = lax.fori_loop(at_edge, rounds, functools.partial(step, at_edge=False), sums)
            plgpu.barrier_arrive(block_free)

            @pl.when(end > begin)
            def _():
                dk_out[x, number, warpgroup] = dk * (1 / math.sqrt(head_dim))
                dv_out[x, number, warpgroup] = dv
                side_out[x, number, warpgroup] = side

            return ring + rounds * every

        for_each_item(*pieces.shape[:2], ctas, piece, jnp.int32(0))

    @pl.when(warpgroup == PRODUCER)
    def _():
        plgpu.set_max_registers(REGISTERS[1], action="decrease")

        def piece(x, number, count, ring):
            block, begin, end = pieces[x, number, 0], pieces[x, number, 1], pieces[x, number, 3]

            @pl.when(count > 0)
            def _():
                plgpu.barrier_wait(block_free)

            for source, target in ((k, k_buffer), (v, v_buffer)):
                for part in range(shape.parts):
                    rows = pl.ds(block * shape.block + part * PRODUCT_ROWS, PRODUCT_ROWS)
                    plgpu.copy_gmem_to_smem(source.at[x, rows], target.at[part], block_full)

            steps = rounds_of(end - begin) * every
            tokens_of = lambda s: tuple(tokens[x, jnp.minimum(begin + s * step_tokens + j, end - 1)]
                                        for j in range(step_tokens))

            def fetch(s, ids):
                now, following = ring + s, tokens_of(s + 1)  # read a step ahead of their use
                slot = slot_of(now)

                @pl.when(now >= STAGES)
                def _():
                    plgpu.barrier_wait(free.at[slot])

                for j, token in enumerate(ids):
                    rows, here = pl.ds(token * group, group), pl.ds(j * group, group)
                    for source, target in ((q.at[x, rows], q_ring.at[slot, here]),
                                           (d_out.at[x, rows], d_out_ring.at[slot, here]),
                                           (stats.at[x, token], stats_ring.at[slot, j]),
                                           (router_q.at[x, token], router_ring.at[slot, j])):
                        plgpu.copy_gmem_to_smem(source, target, full.at[slot])
                return following

            lax.fori_loop(jnp.int32(0), steps, fetch, tokens_of(jnp.int32(0)))
            return ring + steps

        count, ring = for_each_item(*pieces.shape[:2], ctas, piece, jnp.int32(0))
        drain(STAGES, ring, free)
        plgpu.barrier_wait(block_free)


def _add_pieces(parts, first, halves: int, dtype, ctas: int):
    """Sums of every block's pieces, in order: two [X, NB, halves * 64, H] in `dtype`, and float32 [X, NB, R]."""
    (rows, _, _, positions, head_dim), width, blocks = parts[0].shape, parts[2].shape[3], first.shape[1] - 1

    def kernel(dk_parts, dv_parts, side_parts, first, dk, dv, side):
        def add(x, block, _, carry):
            span = first[x, block], first[x, block + 1]

            def total(source, which, shape, layout):
                def piece(i, sums):
                    for warpgroup in which:
                        sums = sums + plgpu.load(source.at[x, i, warpgroup], layout=layout, optimized=False)
                    return sums

                return lax.fori_loop(*span, piece, constant(0, shape, layout))

            for source, target in ((dk_parts, dk), (dv_parts, dv)):
                for half in range(halves):
                    which = range(WORKERS) if halves == 1 else (half,)
                    target[x, block, half] = total(source, which, (positions, head_dim), ACC).astype(dtype)
            side[x, block] = total(side_parts, range(WORKERS), (width,), ROWS)
            return carry

        for_each_item(rows, blocks, ctas, add, None)

    of_block = jax.ShapeDtypeStruct((rows, blocks, halves, positions, head_dim), dtype)
    return plgpu.kernel(
        kernel, out_type=[of_block, of_block, jax.ShapeDtypeStruct((rows, blocks, width), jnp.float32)], grid=(ctas,),
        grid_names=("cta",))(*parts, first)


def _token_masks(group: int, iota):
    """1.0 where a row (or column) belongs to the j-th token of a warpgroup's 64 rows, for every j."""
    owns = lambda j: (iota >= j * group) & (iota < (j + 1) * group)
    return [jnp.where(owns(j), jnp.float32(1), jnp.float32(0)) for j in range(PRODUCT_ROWS // group)]


def _spread(masks, numbers):
    """One number for each token -> one for each of the rows that `masks` belong to."""
    total = masks[0] * numbers[0]
    for mask, number in zip(masks[1:], numbers[1:], strict=True):
        total = total + mask * number
    return total
