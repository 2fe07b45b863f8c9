"""Gradients of queries and gates: the forward pass's walk over every tile's list again, weights from the saved sums.

    weights    W  = exp(Q K^T + gates - lse)         [64, keys]   of a warpgroup's rows and a step
    logits     dL = W * (dO V^T - delta)
    queries    dQ = sum over steps of dL K
    gates      the sum of dL over a token's rows and a block's positions
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import tensor_core
from subq_jax.kernels.gpu.lists import TileLists
from subq_jax.kernels.gpu.tensor_core import ACC, ROWS
from subq_jax.kernels.gpu.tile import (
    HALF,
    LOG2E,
    PRODUCER,
    REGISTERS,
    STEP_KEYS,
    TILE,
    WORKERS,
    TileShape,
    by_row,
    constant,
    drain,
    fetch_tile,
    for_each_item,
    hide_later,
    launch,
    matrix,
    pass_over,
    row_positions,
    spread,
    token_masks,
)

STAGES = 2  # steps in shared memory, a power of 2


def backward_queries(q, d_out, lse, delta, k, v, lists: TileLists, offset, tokens: int, block: int, ctas: int):
    """Gradients along the lists of whole tiles.

    Args:
      q, d_out: rows [X, P * G, H], token by token, in tiles of 128.
      lse, delta: float32 [X, P * G], the forward pass's log-sum-exps and each row's sum of output times `d_out`.
      k, v: [X, S, H]; S is a multiple of `block`.
      lists: the blocks of every tile.
      offset: int32 [X], position of the first token.
      tokens: of a tile.
      block: positions of a block.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      the gradient of `q`, and that of `lists.gates`, float32 [X, tiles, room * tokens]; what stands behind a tile's
      entries is never written, as are those of a worker's tokens in steps that it passes over.
    """
    (count, rows, head_dim), shape = q.shape, TileShape(tokens, block, STEP_KEYS)
    ctas = min(ctas, count * rows // TILE)
    gates = max(32, shape.together * tokens)
    of_parts = (*lists.gates.shape[:2], lists.gates.shape[2] * shape.parts)
    scratch = {
        "q_buffer": matrix(WORKERS, HALF, head_dim, dtype=q.dtype),
        "d_out_buffer": matrix(WORKERS, HALF, head_dim, dtype=q.dtype),
        "k_ring": matrix(STAGES, STEP_KEYS, head_dim, dtype=q.dtype),
        "v_ring": matrix(STAGES, STEP_KEYS, head_dim, dtype=q.dtype),
        "gate_ring": plgpu.SMEM((STAGES, gates), jnp.float32),
        "sum_buffer": plgpu.SMEM((WORKERS, 2, HALF), jnp.float32),  # one is written while the other is still read
        "rows_full": plgpu.Barrier(num_arrivals=2, num_barriers=WORKERS),
        "rows_free": plgpu.Barrier(num_barriers=WORKERS),
        "full": plgpu.Barrier(num_arrivals=2 * shape.together + 1, num_barriers=STAGES),
        "free": plgpu.Barrier(num_arrivals=WORKERS, num_barriers=STAGES),
    }

    results = [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(of_parts, jnp.float32)]
    arguments = q, d_out, lse, delta, k, v, lists.entries, lists.blocks, lists.gates, lists.steps, lists.own, offset
    dq, d_gates = launch(functools.partial(_kernel, shape=shape, ctas=ctas), results, scratch, ctas, arguments)
    return dq, d_gates.reshape(*d_gates.shape[:2], -1, shape.parts, tokens).sum(axis=3).reshape(lists.gates.shape)


def _kernel(q, d_out, lse, delta, k, v, entries, blocks, gates, steps, own, offset, dq, d_gates, *, q_buffer,
            d_out_buffer, k_ring, v_ring, gate_ring, sum_buffer, rows_full, rows_free, full, free, shape: TileShape,
            ctas: int):
    warpgroup = lax.axis_index("warpgroup")
    all_parts = lambda x, tile: lax.div(entries[x, tile] * shape.parts, jnp.int32(shape.together))
    rows_of = lambda tile, worker: pl.ds(tile * TILE + worker * HALF, HALF)

    @pl.when(warpgroup < WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        own_tokens = HALF // shape.group
        masks = token_masks(shape, plgpu.broadcasted_iota(jnp.int32, (HALF,), 0, layout=ROWS))
        scale = LOG2E / math.sqrt(q.shape[2])
        size = min(shape.keys, shape.block)

        def tile(x, tile, _, ring):
            rows, count = rows_of(tile, warpgroup), steps[x, tile, warpgroup]
            slot_of = lambda part: (ring + part) & (STAGES - 1)
            own_step = lambda i: own[x, tile, warpgroup, jnp.minimum(i, count - 1)]
            positions = row_positions(shape, offset[x] + tile * shape.tokens + warpgroup * own_tokens)
            sums, deltas = (plgpu.load(y.at[x, rows], layout=ROWS, optimized=False) for y in (lse, delta))
            sums = sums * LOG2E
            plgpu.barrier_wait(rows_full.at[warpgroup])

            def part(s, total, at_edge: bool):
                slot = slot_of(s)
                plgpu.barrier_wait(full.at[slot])
                logits, d_weights = tensor_core.two_scores(
                    q_buffer.at[warpgroup], k_ring.at[slot], d_out_buffer.at[warpgroup], v_ring.at[slot])
                d_logits = []
                for j in range(shape.together):
                    cut = lambda x, j=j: lax.slice(x, (0, j * size), (HALF, (j + 1) * size))
                    first = j * shape.tokens + warpgroup * own_tokens
                    gate = spread(masks, [gate_ring[slot, first + i] * LOG2E for i in range(own_tokens)])
                    here = cut(logits)
                    if at_edge:
                        entry = lax.div(s, jnp.int32(shape.parts)) * shape.together + j
                        key = blocks[x, tile, entry] * shape.block + lax.rem(s, jnp.int32(shape.parts)) * shape.keys
                        here = hide_later(here, positions, key)
                    weights = jnp.exp2(here * scale - by_row(sums - gate, here))
                    d_logits.append(weights * (cut(d_weights) - by_row(deltas, here)))
                    number = s * shape.together + j
                    turn, at = lax.rem(number, jnp.int32(2)), number * shape.tokens + warpgroup * own_tokens
                    sum_buffer[warpgroup, turn] = d_logits[-1].sum(axis=1)
                    plgpu.commit_smem()
                    for i in range(own_tokens):
                        of_token = [sum_buffer[warpgroup, turn, i * shape.group + h] for h in range(shape.group)]
                        d_gates[x, tile, at + i] = functools.reduce(jnp.add, of_token)
                d_logits = [x.astype(q.dtype) for x in d_logits]
                d_logits = lax.concatenate(d_logits, 1) if len(d_logits) > 1 else d_logits[0]
                total = tensor_core.add_product(total, d_logits, k_ring.at[slot])
                plgpu.barrier_arrive(free.at[slot])
                return total

            def step(i, carry, at_edge: bool):
                before, now, total = carry
                pass_over((before + 1) * shape.parts, now * shape.parts, slot_of, full, free)
                following = own_step(i + 1)  # read a step ahead of its use
                for j in range(shape.parts):
                    total = part(now * shape.parts + j, total, at_edge)
                return now, following, total

            edge = jnp.minimum(count, shape.edge_steps)
            carry = jnp.int32(-1), jnp.int32(0), constant(0, (HALF, q.shape[2]), ACC)
            carry = lax.fori_loop(jnp.int32(0), edge, functools.partial(step, at_edge=True), carry)
            last, _, total = lax.fori_loop(edge, count, functools.partial(step, at_edge=False), carry)
            everything = all_parts(x, tile)
            pass_over((last + 1) * shape.parts, everything, slot_of, full, free)
            q_buffer[warpgroup] = (total * (1 / math.sqrt(q.shape[2]))).astype(q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_buffer.at[warpgroup], dq.at[x, rows])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(rows_free.at[warpgroup])
            return ring + everything

        for_each_item(*entries.shape, ctas, tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == PRODUCER)
    def _():
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        copies = ((gates, gate_ring, full, free, "gates"), (k, k_ring, full, None, "blocks"),
                  (v, v_ring, full, None, "blocks"))

        def tile(x, tile, number, ring):
            for worker in range(WORKERS):
                @pl.when(number > 0)
                def _(worker=worker):
                    plgpu.barrier_wait(rows_free.at[worker])

                mine = rows_of(tile, worker)
                for source, target in ((q, q_buffer), (d_out, d_out_buffer)):
                    plgpu.copy_gmem_to_smem(source.at[x, mine], target.at[worker], rows_full.at[worker])
            parts = all_parts(x, tile)
            fetch_tile(shape, parts, ring, STAGES, x, tile, blocks, copies)
            return ring + parts

        _, ring = for_each_item(*entries.shape, ctas, tile, jnp.int32(0))
        drain(STAGES, ring, free)
        for worker in range(WORKERS):
            plgpu.barrier_wait(rows_free.at[worker])
