"""Attention of a tile's rows to the blocks that it lists, on Hopper.

One block of threads per multiprocessor walks over tiles. While the tensor core adds one step's weights times values, it
also multiplies the next step's queries and keys, whose exponentials run beside it:

    step      s                          s + 1
    scores    [Q K^T]                    [Q K^T]
    softmax          [max, exp]                 [max, exp]
    values    [W V of s - 1      ]       [W V of s         ]

Queries are loaded one tile ahead and outputs leave through the buffer that held them. Each warpgroup takes the steps
that its own rows list and passes over the others. Within a warpgroup the schedule is that of FlashAttention-3
(arXiv:2407.08608); between warpgroups nothing is ordered but that a slot is filled again when both have freed it.
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
    FLOOR,
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
    stages_of,
    token_masks,
)


def attend(q, k, v, lists: TileLists, offset, tokens: int, block: int, ctas: int):
    """Outputs and log-sum-exps of whole tiles.

    Args:
      q: rows [X, P * G, H], token by token, in tiles of 128.
      k, v: [X, S, H]; S is a multiple of `block`.
      lists: the blocks of every tile.
      offset: int32 [X], position of the first token.
      tokens: of a tile.
      block: positions of a block.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      outputs [X, P * G, H] in `q`'s dtype and log-sum-exps float32 [X, P * G]; 0 and -7e28 for rows that see nothing.
    """
    (count, rows, head_dim), shape = q.shape, TileShape(tokens, block, max(STEP_KEYS, block))
    ctas = min(ctas, count * rows // TILE)
    gates = max(32, shape.together * tokens)  # a slot of gates is a whole line of 128 bytes
    scratch = {
        "q_buffer": matrix(2 * WORKERS, HALF, head_dim, dtype=q.dtype),
        "k_ring": matrix(stages_of(block), shape.keys, head_dim, dtype=q.dtype),
        "v_ring": matrix(stages_of(block), shape.keys, head_dim, dtype=q.dtype),
        "gate_ring": plgpu.SMEM((stages_of(block), gates), jnp.float32),
        "lse_buffer": plgpu.SMEM((WORKERS, HALF), jnp.float32),
        "q_full": plgpu.Barrier(num_barriers=2 * WORKERS),
        "q_free": plgpu.Barrier(num_barriers=2 * WORKERS),
        "full": plgpu.Barrier(num_arrivals=2 * shape.together + 1, num_barriers=stages_of(block)),
        "free": plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages_of(block)),
    }

    results = [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((count, rows), jnp.float32)]
    arguments = q, k, v, lists.entries, lists.blocks, lists.gates, lists.steps, lists.own, offset
    kernel = functools.partial(_kernel, shape=shape, ctas=ctas)
    return launch(kernel, results, scratch, ctas, arguments, automatic_barriers=False)


def _kernel(q, k, v, entries, blocks, gates, steps, own, offset, out, lse, *, q_buffer, k_ring, v_ring, gate_ring,
            lse_buffer, q_full, q_free, full, free, shape: TileShape, ctas: int):
    warpgroup, stages = lax.axis_index("warpgroup"), k_ring.shape[0]
    all_steps = lambda x, tile: lax.div(entries[x, tile], jnp.int32(shape.together))
    rows_of = lambda tile, worker: pl.ds(tile * TILE + worker * HALF, HALF)
    buffer_of = lambda number, worker: (number & 1) * WORKERS + worker

    @pl.when(warpgroup < WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        worker = _Worker(shape, q.shape[2], q.dtype, warpgroup, gate_ring)

        def tile(x, tile, number, ring):
            mine, queries = steps[x, tile, warpgroup], q_buffer.at[buffer_of(number, warpgroup)]
            positions = row_positions(shape, offset[x] + tile * shape.tokens + warpgroup * worker.tokens)
            slot_of = lambda step: (ring + step) & (stages - 1)
            own_step = lambda i: own[x, tile, warpgroup, jnp.minimum(i, mine - 1)]

            def hide(step, logits):
                size = shape.block
                parts = [lax.slice(logits, (0, j * size), (HALF, (j + 1) * size)) for j in range(shape.together)]
                firsts = [blocks[x, tile, step * shape.together + j] * size for j in range(shape.together)]
                parts = [hide_later(part, positions, first) for part, first in zip(parts, firsts, strict=True)]
                return lax.concatenate(parts, 1) if len(parts) > 1 else parts[0]

            plgpu.barrier_wait(q_full.at[buffer_of(number, warpgroup)])
            first, following = slot_of(jnp.int32(0)), own_step(jnp.int32(1))
            plgpu.barrier_wait(full.at[first])
            logits = tensor_core.scores(queries, k_ring.at[first])
            state = constant(FLOOR, (HALF,), ROWS), constant(0, (HALF,), ROWS)
            weights, _, *state = worker.softmax(hide(jnp.int32(0), logits), *state, first)

            @pl.when(number > 0)  # the tile before has left its buffer
            def _():
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(q_free.at[buffer_of(number + 1, warpgroup)])

            def step(i, carry):
                before, now, sums, top, norm, weights = carry
                pass_over(before + 1, now, slot_of, full, free)
                following, slot = own_step(i + 1), slot_of(now)  # read a step ahead of its use
                plgpu.barrier_wait(full.at[slot])

                def softmax(logits):
                    if shape.edge_steps > 1:
                        logits = lax.cond(i < shape.edge_steps, lambda: hide(now, logits), lambda: logits)
                    return worker.softmax(logits, top, norm, slot)

                sums, (weights, shrink, top, norm) = tensor_core.scores_beside_product(
                    queries, k_ring.at[slot], softmax, sums, weights, v_ring.at[slot_of(before)])
                plgpu.barrier_arrive(free.at[slot_of(before)])
                return now, following, sums * by_row(shrink, sums), top, norm, weights

            carry = jnp.int32(0), following, constant(0, (HALF, q.shape[2]), ACC), *state, weights
            last, _, sums, top, norm, weights = lax.fori_loop(jnp.int32(1), mine, step, carry)
            sums = tensor_core.add_product(sums, weights, v_ring.at[slot_of(last)])
            plgpu.barrier_arrive(free.at[slot_of(last)])
            total = all_steps(x, tile)
            pass_over(last + 1, total, slot_of, full, free)

            norm = jnp.where(norm > 0, norm, jnp.float32(1))
            queries[...] = (sums * by_row(1 / norm, sums)).astype(q.dtype)
            lse_buffer[warpgroup] = (top + jnp.log2(norm)) * (1 / LOG2E)
            plgpu.commit_smem()
            rows = rows_of(tile, warpgroup)
            plgpu.copy_smem_to_gmem(queries, out.at[x, rows])
            plgpu.copy_smem_to_gmem(lse_buffer.at[warpgroup], lse.at[x, rows])
            return ring + total

        for_each_item(*entries.shape, ctas, tile, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == PRODUCER)
    def _():
        plgpu.set_max_registers(REGISTERS[1], action="decrease")
        copies = ((gates, gate_ring, full, free, "gates"), (k, k_ring, full, None, "blocks"),
                  (v, v_ring, full, None, "blocks"))

        def tile(x, tile, number, ring):
            for worker in range(WORKERS):
                buffer = buffer_of(number, worker)

                @pl.when(number > 1)
                def _(buffer=buffer):
                    plgpu.barrier_wait(q_free.at[buffer])

                plgpu.copy_gmem_to_smem(q.at[x, rows_of(tile, worker)], q_buffer.at[buffer], q_full.at[buffer])
            steps = all_steps(x, tile)
            fetch_tile(shape, steps, ring, stages, x, tile, blocks, copies)
            return ring + steps

        number, ring = for_each_item(*entries.shape, ctas, tile, jnp.int32(0))
        drain(stages, ring, free)

        @pl.when(number > 1)
        def _():
            for worker in range(WORKERS):
                plgpu.barrier_wait(q_free.at[buffer_of(number, worker)])


class _Worker:
    """A warpgroup's arithmetic between products."""

    def __init__(self, shape: TileShape, head_dim: int, dtype, warpgroup, gate_ring):
        self.shape, self.dtype, self.warpgroup, self.gate_ring = shape, dtype, warpgroup, gate_ring
        self.tokens = HALF // shape.group
        self.masks = token_masks(shape, plgpu.broadcasted_iota(jnp.int32, (HALF,), 0, layout=ROWS))
        self.scale = LOG2E / math.sqrt(head_dim)

    def gates(self, slot, block: int):
        """The gates of the step's block for every row, as powers of 2."""
        first = block * self.shape.tokens + self.warpgroup * self.tokens
        return spread(self.masks, [self.gate_ring[slot, first + j] * LOG2E for j in range(self.tokens)])

    def softmax(self, logits, top, norm, slot):
        """A step of the running softmax.

        Args:
          logits: float32 [64, keys], not yet scaled.
          top, norm: float32 [64], the largest logit so far (a power of 2) and the sum of weights relative to it.
          slot: of the ring.

        Returns:
          the step's weights [64, keys] in half precision, what earlier sums shrink by, and the new `top` and `norm`.
        """
        size = self.shape.block
        parts = [lax.slice(logits, (0, j * size), (HALF, (j + 1) * size)) for j in range(self.shape.together)]
        gates = [self.gates(slot, j) for j in range(self.shape.together)]
        new = top
        for part, gate in zip(parts, gates, strict=True):
            new = jnp.maximum(new, part.max(axis=1) * self.scale + gate)
        shrink = jnp.exp2(top - new)
        norm, weights = norm * shrink, []
        for part, gate in zip(parts, gates, strict=True):
            weight = jnp.exp2(part * self.scale - by_row(new - gate, part))
            norm = norm + weight.sum(axis=1)
            weights.append(weight.astype(self.dtype))
        return lax.concatenate(weights, 1) if len(weights) > 1 else weights[0], shrink, new, norm
