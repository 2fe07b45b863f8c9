"""Scoring and choosing in one Hopper kernel: no array of scores leaves the chip.

Two warpgroups own 64 queries each and keep the best blocks found so far in registers; a third copies the summaries, a
tile of blocks at a time, into a ring that both read:

                 one tile of blocks
    64 queries  [ scores           ]   insert the best    [ M best scores | their ids ]
                [                  ]  ----------------->  [               |           ]
                [                  ]   while any beats
                                       the M-th so far

A warp searches a tile for its best block as often as the query with the most newcomers, of the warp's 16, needs. A
stream in random order holds about M / i newcomers in its i-th tile, which over a long one is most of the work, for a
newcomer mostly leaves again. Long streams are therefore read twice: first only the maximum of every 256th block is
kept, and the M-th best of those 256 is a score that the M best blocks all reach, so that the second reading looks at
few others. Tiles behind the last candidate of 128 queries are not visited, and only those at the ends of their range
compare ids with what is a candidate.

Exact, ties included: blocks come in ascending order and the best is taken from the lowest index, so that a newcomer
must beat the worst block held strictly, and among equally bad ones the one of highest index leaves.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import tensor_core
from subq_jax.kernels.gpu.persistent import (
    HALF,
    PRODUCER,
    REGISTERS,
    WORKERS,
    by_row,
    constant,
    drain,
    for_each_item,
    launch,
    matrix,
)
from subq_jax.kernels.gpu.tensor_core import ACC, ROWS
from subq_jax.selection.summaries import score_scale

QUERIES = HALF * WORKERS  # of a block of threads
RING_BYTES = 128 << 10  # of shared memory for summaries
GROUPS = 256  # of blocks, whose maxima bound the M-th best from below
LEAST = 3  # blocks of a group that are worth reading twice
LOWEST = float(jnp.finfo(jnp.float32).min)  # of what a candidate can score, so that it beats an empty slot
BELOW = -jnp.iinfo(jnp.int32).max  # every id, also those of empty slots


def best_blocks(router_q, summaries, low, high, count: int, ctas: int):
    """The contract's flat choice.

    Args:
      router_q: [X, P, R], P a multiple of 128.
      summaries: [X, NB, R], NB a multiple of `tile_of(count)`.
      low, high: int32 [X, P], first and last candidate; the last lies before the first where there is none.
      count: blocks to choose, M.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      block ids int32 [X, P, M'] descending, then -1, and their scores float32 [X, P, M'], 0 where the id is -1. M' is M
      rounded up to a multiple of 8.
    """
    (rows, padded, width), held, tile = router_q.shape, -(-count // 8) * 8, tile_of(count)
    itemsize = router_q.dtype.itemsize
    stages = max(2, min(8, RING_BYTES // (tile * width * itemsize)))
    total = rows * padded // QUERIES
    ctas = min(ctas, total)
    scratch = {
        "q_buffer": matrix(WORKERS, HALF, width, dtype=router_q.dtype),
        "ring": matrix(stages, tile, width, dtype=router_q.dtype),
        "q_full": plgpu.Barrier(num_barriers=WORKERS),
        "q_free": plgpu.Barrier(num_barriers=WORKERS),
        "full": plgpu.Barrier(num_barriers=stages),
        "free": plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
    }

    results = [jax.ShapeDtypeStruct((rows, padded, held), dtype) for dtype in (jnp.int32, jnp.float32)]
    arguments = router_q, summaries, low, high, _spans(low, high, tile, summaries.shape[1])
    kernel = functools.partial(_kernel, tile=tile, count=count, ctas=ctas)
    return launch(kernel, results, scratch, ctas, arguments)


def tile_of(count: int) -> int:
    """Summaries compared at a time: scores, ids and a tile's scores share a thread's registers."""
    return 128 if count <= 64 else 64


def _spans(low, high, tile: int, num_blocks: int):
    """Tiles that 128 queries visit: [begin, a) and [b, end) hold blocks that are no candidates of some, [a, b) none.

    Returns:
      (begin, a, b, end), int32 [X, P / 128, 4].
    """
    low, high = (x.reshape(x.shape[0], -1, QUERIES) for x in (low, high))
    some = high >= low
    end = -(-jnp.where(some, high + 1, 0).max(axis=-1) // tile)
    begin = jnp.minimum(jnp.where(some, low, num_blocks).min(axis=-1) // tile, end)
    a = jnp.clip(-(-low.max(axis=-1) // tile), begin, end)
    b = jnp.clip((high.min(axis=-1) + 1) // tile, a, end)
    return jnp.stack([begin, a, b, end], axis=-1).astype(jnp.int32)


def _kernel(router_q, summaries, low, high, spans, ids_out, scores_out, *, q_buffer, ring, q_full, q_free, full, free,
            tile: int, count: int, ctas: int):
    warpgroup = lax.axis_index("warpgroup")
    (stages, width), held_slots = ring.shape[::2], ids_out.shape[2]
    my_rows = lambda query_tile, worker: pl.ds(query_tile * QUERIES + worker * HALF, HALF)
    slot_of = lambda step: lax.rem(step, jnp.int32(stages))

    @pl.when(warpgroup < WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        column = plgpu.broadcasted_iota(jnp.int32, (HALF, tile), 1, layout=ACC)
        place = plgpu.broadcasted_iota(jnp.int32, (HALF, held_slots), 1, layout=ACC)

        def query_tile(x, query_tile, _, step):
            mine = my_rows(query_tile, warpgroup)
            begin, a, b, end = (spans[x, query_tile, j] for j in range(4))
            first, last = (plgpu.load(y.at[x, mine], layout=ROWS, optimized=False) for y in (low, high))
            plgpu.barrier_wait(q_full.at[warpgroup])

            def scores_at(step):
                slot = slot_of(step)
                plgpu.barrier_wait(full.at[slot])
                scores = tensor_core.scores(q_buffer.at[warpgroup], ring.at[slot]) * score_scale(width)
                plgpu.barrier_arrive(free.at[slot])
                return jnp.maximum(scores, LOWEST)

            def first_visit(i, maxima):
                return tuple(jnp.maximum(x, scores_at(step + i * len(maxima) + j)) for j, x in enumerate(maxima))

            def visit(i, held, at_edge: bool):
                scores = scores_at(step + seen + i - begin)
                if at_edge:
                    inside = (column >= by_row(first - i * tile, column)) & (column <= by_row(last - i * tile, column))
                    scores = jnp.where(inside, scores, -jnp.inf)
                worst = held[0].min(axis=1)
                better = jnp.where(scores > by_row(worst, scores), jnp.float32(1), jnp.float32(0)).sum(axis=1)
                newcomers = jnp.minimum(tensor_core.largest_of_warp(better.astype(jnp.int32)), jnp.int32(count))
                insert = functools.partial(_insert, first=i * tile, column=column)
                return lax.fori_loop(0, newcomers, insert, (scores, worst, *held))[2:]

            # Empty slots have ids below 0, each another; what fills the last 8 up beats every score and never leaves.
            maxima = (constant(-jnp.inf, (HALF, tile), ACC),) * (GROUPS // tile)
            rounds = _rounds(a, b, tile)
            seen = rounds * len(maxima)
            maxima = lax.fori_loop(0, rounds, first_visit, maxima)
            least = by_row(_below_best(maxima, jnp.where(rounds > 0, count, 1)), place)
            held = jnp.where(place < count, least, jnp.float32(jnp.inf)), -1 - place
            held = lax.fori_loop(begin, a, functools.partial(visit, at_edge=True), held)
            held = lax.fori_loop(a, b, functools.partial(visit, at_edge=False), held)
            held = lax.fori_loop(b, end, functools.partial(visit, at_edge=True), held)
            plgpu.barrier_arrive(q_free.at[warpgroup])
            ids_out[x, mine], scores_out[x, mine] = _descending(*held, count=count, place=place)
            return step + seen + end - begin

        for_each_item(*spans.shape[:2], ctas, query_tile, jnp.int32(0))

    @pl.when(warpgroup == PRODUCER)
    def _():
        plgpu.set_max_registers(REGISTERS[1], action="decrease")

        def query_tile(x, query_tile, number, step):
            begin, a, b, end = (spans[x, query_tile, j] for j in range(4))
            seen = _rounds(a, b, tile) * (GROUPS // tile)
            for worker in range(WORKERS):
                @pl.when(number > 0)
                def _(worker=worker):
                    plgpu.barrier_wait(q_free.at[worker])

                source = router_q.at[x, my_rows(query_tile, worker)]
                plgpu.copy_gmem_to_smem(source, q_buffer.at[worker], q_full.at[worker])

            def fetch(i, carry):
                now, i = step + i, jnp.where(i < seen, a + i, begin + i - seen)
                slot = slot_of(now)

                @pl.when(now >= stages)
                def _():
                    plgpu.barrier_wait(free.at[slot])

                plgpu.copy_gmem_to_smem(summaries.at[x, pl.ds(i * tile, tile)], ring.at[slot], full.at[slot])
                return carry

            steps = seen + end - begin
            lax.fori_loop(0, steps, fetch, None)
            return step + steps

        _, steps = for_each_item(*spans.shape[:2], ctas, query_tile, jnp.int32(0))
        drain(stages, steps, free)
        for worker in range(WORKERS):
            plgpu.barrier_wait(q_free.at[worker])


def _rounds(a, b, tile: int):
    """How many blocks of each group the first reading sees, of tiles [a, b); 0 where it is not worth it."""
    rounds = lax.div(b - a, jnp.int32(GROUPS // tile))
    return jnp.where(rounds < LEAST, 0, rounds)


def _below_best(maxima, count):
    """Barely less than the `count`-th best of every row of `maxima`, or less yet where some are equal; float32 [64]."""
    best = lambda maxima: functools.reduce(jnp.maximum, [x.max(axis=1) for x in maxima])

    def remove(_, maxima):
        highest = best(maxima)
        return tuple(jnp.where(x == by_row(highest, x), jnp.float32(-jnp.inf), x) for x in maxima)

    bound = best(lax.fori_loop(1, count, remove, maxima))
    bound = jnp.where(bound > LOWEST, jnp.minimum(bound, -LOWEST), jnp.float32(-jnp.inf))  # a NaN bounds nothing
    return bound - jnp.maximum(jnp.abs(bound) * 2.0**-22, 1e-37)


def _insert(_, state, *, first, column):
    """The best block of every query's tile, which starts at block `first`, replaces the worst held if better."""
    scores, worst, held, ids = state
    best = scores.max(axis=1)
    where = jnp.where(scores == by_row(best, scores), column, jnp.int32(scores.shape[1])).min(axis=1)
    scores = jnp.where(column == by_row(where, scores), jnp.float32(-jnp.inf), scores)
    leaving = jnp.where(held == by_row(worst, held), ids, jnp.int32(BELOW)).max(axis=1)
    taken = (ids == by_row(leaving, held)) & (by_row(best, held) > by_row(worst, held))
    held = jnp.where(taken, by_row(best, held), held)
    ids = jnp.where(taken, by_row(where + first, held), ids)
    return scores, held.min(axis=1), held, ids


def _descending(held, ids, *, count: int, place):
    """What is held in the order of ids, highest first: ids, then -1, and scores, then 0."""
    def take(j, state):
        left, ids, scores = state
        highest = left.max(axis=1)
        here = left == by_row(highest, left)
        score = jnp.where(here, held, jnp.float32(-jnp.inf)).max(axis=1)
        some = highest >= 0
        ids = jnp.where(place == j, by_row(jnp.where(some, highest, jnp.int32(-1)), ids), ids)
        scores = jnp.where(place == j, by_row(jnp.where(some, score, jnp.float32(0)), scores), scores)
        return jnp.where(here, jnp.int32(BELOW), left), ids, scores

    nothing = jnp.minimum(place, -1), jnp.where(place >= 0, jnp.float32(0), held)  # in registers as `held` is
    return lax.fori_loop(0, count, take, (ids, *nothing))[1:]
