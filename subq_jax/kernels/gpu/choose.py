"""Scoring and choosing in one Hopper kernel, which writes down only what beats a bound, never all scores.

Two warpgroups own 64 queries each; a third copies the summaries, a tile of blocks at a time, into a ring that both
read. What scores above a query's bound is appended to its list, in the order of ids; a list of 256 is cut down to the M
best when it might not hold another tile's, and their worst is the bound from then on:

                 one tile of blocks
    64 queries  [ scores           ]   above the bound    [ list of up to 256 scores | their ids ]
                [                  ]  ----------------->  [                          |           ]
                                                             M best of it, when full and at the end

Long streams are read twice: first only the maximum of every 128th block is kept (of every 256th where more than 64 are
chosen), and the M-th best of those maxima is a score that the M best blocks all reach. If the order is random 1.1 M (of
29) to 1.4 M (of 125) of 16,384 blocks reach it, so that a list is hardly ever full. Of very long streams the first
reading skips every other tile: the bound is a lower one, which twice as many blocks reach, for three quarters of the
products. What M of some numbers reach is found by bisection of their bits, in 32 rounds at most. Scores are scaled
where they are compared with a bound.

The lists of all multiprocessors take 35 MB of global memory, less than the second-level cache holds. Tiles behind the
last candidate of 128 queries are not visited. Ids are compared with what is a candidate in those at the ends of a
range, and in all of a stream that is too short to be read twice.

Exact, ties included: blocks come in ascending order, so that a newcomer that only equals the bound is not needed, and
stands behind its equals if it is listed; among equals the M best are those of the lowest ids, which stand first. A
score that is no number is the worst that there can be.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import append, lanes, tensor_core
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
from subq_jax.kernels.gpu.registers import by_row, constant
from subq_jax.kernels.gpu.tensor_core import ACC, ROWS
from subq_jax.selection.summaries import score_scale

QUERIES = PRODUCT_ROWS * WORKERS  # of a block of threads
RING_BYTES = 128 << 10  # of shared memory for summaries
FEW = 64  # up to so many chosen: tiles of 128 blocks and 128 maxima; above: 64 and 256
LEAST = 3  # blocks of a group that are worth reading twice
FAR = 256  # tiles from which on the first reading skips every other one, where few are chosen
LISTED, PART = 256, 64  # blocks in a query's list; of those that are looked at together
LARGEST = int(jnp.iinfo(jnp.int32).max)  # all bits but the sign
LOWEST = float(jnp.finfo(jnp.float32).min)  # that a candidate can score before scaling: above -inf, the first bound


def best_blocks(router_q, summaries, low, high, count: int, ctas: int):
    """The contract's flat choice.

    Args:
      router_q: [X, P, R], P a multiple of 128.
      summaries: [X, NB, R], NB a multiple of `tile_of(count)`.
      low, high: int32 [X, P], first and last candidate; the last lies before the first where there is none.
      count: blocks to choose, M.
      ctas: blocks of threads, one for each multiprocessor.

    Returns:
      block ids int32 [X, P, M] descending, then -1, and their scores float32 [X, P, M], 0 where the id is -1.
    """
    (rows, padded, width), tile = router_q.shape, tile_of(count)
    itemsize = router_q.dtype.itemsize
    stages = max(2, min(8, RING_BYTES // (tile * width * itemsize)))
    ctas = min(ctas, rows * padded // QUERIES)
    scratch = {
        "q_buffer": matrix(WORKERS, PRODUCT_ROWS, width, dtype=router_q.dtype),
        "ring": matrix(stages, tile, width, dtype=router_q.dtype),
        "q_full": plgpu.Barrier(num_barriers=WORKERS),
        "q_free": plgpu.Barrier(num_barriers=WORKERS),
        "full": plgpu.Barrier(num_barriers=stages),
        "free": plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
    }

    shapes = (rows, padded, count), (ctas, QUERIES, LISTED)
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes for dtype in (jnp.int32, jnp.float32)]
    arguments = router_q, lanes.in_lanes(summaries, tile), low, high, _spans(low, high, tile, summaries.shape[1])
    kernel = functools.partial(_kernel, tile=tile, count=count, ctas=ctas)
    ids, scores, *_ = launch(kernel, results, scratch, ctas, arguments)
    filled = jnp.arange(count, dtype=jnp.int32)[None, None] <= (high - low)[..., None]
    return jnp.where(filled, ids, -1), jnp.where(filled, scores, 0.0)


def tile_of(count: int) -> int:
    """Summaries compared at a time: fewer where many are chosen, or lists would have to be cut down often."""
    return 128 if count <= FEW else 64


def _groups(count: int) -> int:
    """How many groups the first reading keeps the maximum of, which bound the `count`-th best from below."""
    return 128 if count <= FEW else 256


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


def _kernel(router_q, summaries, low, high, spans, ids_out, scores_out, listed_ids, listed_scores, *,
            q_buffer, ring, q_full, q_free, full, free, tile: int, count: int, ctas: int):
    warpgroup = lax.axis_index("warpgroup")
    stages, scale, round_tiles = ring.shape[0], score_scale(ring.shape[2]), _groups(count) // tile
    my_rows = lambda query_tile, worker: pl.ds(query_tile * QUERIES + worker * PRODUCT_ROWS, PRODUCT_ROWS)
    slot_of = lambda step: lax.rem(step, jnp.int32(stages))

    @pl.when(warpgroup < WORKERS)
    def _():
        plgpu.set_max_registers(REGISTERS[0], action="increase")
        column = lanes.place_in_order(plgpu.broadcasted_iota(jnp.int32, (PRODUCT_ROWS, tile), 1, layout=ACC), tile)
        lists = _Lists(*(x.at[lax.axis_index("cta"), pl.ds(warpgroup * PRODUCT_ROWS, PRODUCT_ROWS)]
                         for x in (listed_scores, listed_ids)), count)

        def query_tile(x, query_tile, _, step):
            mine = my_rows(query_tile, warpgroup)
            begin, a, b, end = (spans[x, query_tile, j] for j in range(4))
            first, last = (plgpu.load(y.at[x, mine], layout=ROWS, optimized=False) for y in (low, high))
            plgpu.barrier_wait(q_full.at[warpgroup])

            def scores_at(step):
                slot = slot_of(step)
                plgpu.barrier_wait(full.at[slot])
                scores = tensor_core.scores(q_buffer.at[warpgroup], ring.at[slot])
                plgpu.barrier_arrive(free.at[slot])
                return scores

            def bound_best(rounds):
                maxima = (constant(LOWEST, (PRODUCT_ROWS, tile), ACC),) * round_tiles
                group = lambda i, maxima: tuple(
                    tensor_core.fmax(scores_at(step + i * round_tiles + j), x) for j, x in enumerate(maxima))
                return _below_best(lax.fori_loop(0, rounds, group, maxima), count, scale)

            def visit(i, state):
                lengths, bounds = lists.make_room(tile, *state)  # first, for both need most registers
                scores = scores_at(step + seen + i - begin)
                scores = lax.cond((i < a) | (i >= b) | unbounded, only_candidates, lambda _, x: x, i, scores)
                return lists.append(scores, scale, i * tile, lengths, bounds), bounds

            def only_candidates(i, scores):  # what is no number among them becomes one; no bound would be above it
                inside = (column >= by_row(first - i * tile, column)) & (column <= by_row(last - i * tile, column))
                return jnp.where(inside, tensor_core.fmax(scores, constant(LOWEST, scores.shape, ACC)), -jnp.inf)

            rounds, _ = _first_reading(a, b, count)
            seen = rounds * round_tiles
            bounds = lax.cond(rounds > 0, bound_best, lambda _: _each_row(-jnp.inf), rounds)
            unbounded = tensor_core.largest_of_warp(jnp.where(bounds > LOWEST, 0, 1)) > 0
            lengths, bounds = lax.fori_loop(begin, end, visit, (_each_row(0), bounds))
            plgpu.barrier_arrive(q_free.at[warpgroup])
            lists.write_best(lengths, bounds, scores_out.at[x, mine], ids_out.at[x, mine])
            return step + seen + end - begin

        for_each_item(*spans.shape[:2], ctas, query_tile, jnp.int32(0))

    @pl.when(warpgroup == PRODUCER)
    def _():
        plgpu.set_max_registers(REGISTERS[1], action="decrease")

        def query_tile(x, query_tile, number, step):
            begin, a, b, end = (spans[x, query_tile, j] for j in range(4))
            rounds, stride = _first_reading(a, b, count)
            seen = rounds * round_tiles
            for worker in range(WORKERS):
                @pl.when(number > 0)
                def _(worker=worker):
                    plgpu.barrier_wait(q_free.at[worker])

                source = router_q.at[x, my_rows(query_tile, worker)]
                plgpu.copy_gmem_to_smem(source, q_buffer.at[worker], q_full.at[worker])

            def fetch(i, carry):
                now, i = step + i, jnp.where(i < seen, a + i * stride, begin + i - seen)
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


def _first_reading(a, b, count: int):
    """The first reading of tiles [a, b): how many blocks of each group it sees, 0 where it is not worth its time, and
    its stride in tiles."""
    stride = jnp.where((b - a >= FAR) & (count <= FEW), jnp.int32(2), jnp.int32(1))
    rounds = lax.div(b - a, stride * jnp.int32(_groups(count) // tile_of(count)))
    return jnp.where(rounds < LEAST, 0, rounds), stride


def _below_best(maxima, count: int, scale: float):
    """`scale` times a number barely below the `count`-th best of every row of `maxima`, float32 [64]; -inf for none."""
    lowest = functools.reduce(jnp.minimum, maxima).min(axis=1)
    size = sum(x.shape[1] for x in maxima)
    bound = jnp.minimum(_reached_by(maxima, count, lowest, _highest(maxima), _each_row(float(size))), -LOWEST)
    below = bound * scale
    return jnp.where(bound > LOWEST, below - jnp.maximum(jnp.abs(below) * 2.0**-22, 1e-37), -jnp.inf)


class _Lists(NamedTuple):
    """The lists of a warpgroup's 64 queries in global memory, [64, LISTED] each, and how many blocks are chosen."""

    scores: jax.Array
    ids: jax.Array
    count: int

    def append(self, scores, scale, first_id, lengths, bounds):
        """Appends what of `scores` [64, n], scaled, is above `bounds` [64]; -> new lengths."""
        return append.append_better(scores, scale, first_id, bounds, lengths, self.scores, self.ids)

    def make_room(self, size: int, lengths, bounds):
        """Lengths and bounds [64] after cutting down lists that could not take `size` blocks more."""
        full = tensor_core.largest_of_warp(lengths) > LISTED - size
        return lax.cond(full, self._cut, lambda *x: x, lengths, bounds)

    def _cut(self, lengths, bounds):
        """Keeps the best of each list in its place."""
        least, equals = self._best(lengths, bounds)
        self._copy(lengths, least, equals, _each_row(0), self.scores, self.ids)
        return jnp.minimum(lengths, self.count), least

    def write_best(self, lengths, bounds, scores_out, ids_out):
        """Writes the best blocks and their scores, ids descending."""
        last = jnp.minimum(lengths, self.count) - 1
        self._copy(lengths, *self._best(lengths, bounds), last, scores_out, ids_out, backward=True)

    def _best(self, lengths, bounds):
        """A number that the best of a list reach, and how many that equal it are among them.

        Of a list that holds fewer than are chosen all are the best.
        """
        best = lambda parts: functools.partial(self._best_of, parts)
        return lax.cond(self._parts(lengths) <= 1, best(1), best(LISTED // PART), lengths, bounds)

    def _best_of(self, parts: int, lengths, bounds):
        """`_best` where no list goes beyond so many parts."""
        listed = [self._part(i, lengths) for i in range(parts)]
        highest = jnp.where(lengths <= self.count, bounds, _highest(listed))  # few: nothing to look for
        least = _reached_by(listed, self.count, bounds, highest, lengths.astype(jnp.float32))
        better = sum(_count(x > by_row(least, x)) for x in listed).astype(jnp.int32)
        return least, jnp.minimum(lengths, self.count) - better

    def _copy(self, lengths, least, equals, places, scores_out, ids_out, *, backward: bool = False):
        """Copies what is above `least` and the first `equals` that equal it, from `places` on."""
        def copy(i, state):
            places, equals = state
            scores, ids = self._part(i, lengths), lanes.load_in_lanes(self.ids, i * PART, PART)
            places = append.append_better(
                scores, 1.0, ids, least, places, scores_out, ids_out, equals=equals, backward=backward)
            return places, equals - _count(scores == by_row(least, scores)).astype(jnp.int32)

        lax.fori_loop(0, self._parts(lengths), copy, (places, equals))

    def _parts(self, lengths):
        """How many parts the longest of a warp's lists has."""
        return lax.div(tensor_core.largest_of_warp(lengths) + (PART - 1), jnp.int32(PART))

    def _part(self, i, lengths):
        """Scores of a part of the lists, -inf behind their ends; float32 [64, PART], columns in the order of lanes."""
        scores = lanes.load_in_lanes(self.scores, jnp.int32(i * PART), PART)
        slot = lanes.place_in_order(plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=ACC), PART)
        return jnp.where(slot < by_row(lengths - i * PART, slot), scores, -jnp.inf)


def _reached_by(numbers, count: int, low, high, reaching):
    """For every row the `count`-th largest of `numbers`, or one that exactly `count` of them reach; float32 [64].

    Bits of numbers are bisected, as integers of their order.

    Args:
      numbers: float32 [64, n] each.
      count: how many are to reach it.
      low, high: float32 [64], a number that `count` reach, and one that is reached if it is the largest.
      reaching: float32 [64], how many reach `low`.
    """
    def narrow(state):
        _, low, high, reaching = state
        middle = (low | high) - ((low ^ high) >> 1)
        reached = _number(middle)
        counted = sum(_count(x >= by_row(reached, x)) for x in numbers)
        enough = counted >= count
        low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)
        return state_of(low, high, jnp.where(enough, counted, reaching))

    def state_of(low, high, reaching):
        left = jnp.where((low < high) & (reaching > count), 1, 0)
        return tensor_core.largest_of_warp(left), low, high, reaching

    state = state_of(_order(low), _order(high), reaching)
    return _number(lax.while_loop(lambda state: state[0] > 0, narrow, state)[1])


def _highest(numbers):
    """The largest of every row of all `numbers`, float32 [64]."""
    return functools.reduce(jnp.maximum, numbers).max(axis=1)


def _each_row(number):
    """The same number for each of 64 rows."""
    return constant(number, (PRODUCT_ROWS,), ROWS, jnp.int32 if isinstance(number, int) else jnp.float32)


def _count(some):
    """How many are true in every row, float32."""
    return jnp.where(some, jnp.float32(1), jnp.float32(0)).sum(axis=1)


def _order(x):
    """Integers in the order of the float32 numbers `x`."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & LARGEST)


def _number(order):
    """The inverse of `_order`."""
    return lax.bitcast_convert_type(order ^ ((order >> 31) & LARGEST), jnp.float32)
