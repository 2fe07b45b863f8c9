"""Scoring and choosing in one TPU kernel: no array of scores leaves the chip.

A grid step owns a tile of query tokens, one for each lane, and walks over the summaries of one KV head in tiles of
blocks, which stand on the sublanes. What it has found so far stays in the output's own buffer:

                 128 queries                          128 queries
    summaries   [ scores of   ]   insert the best    [ M best scores ]
    256 blocks  [ this tile   ]  ----------------->  [ and their ids ]
                [             ]   while any beats
                                  the M-th so far

There is no sort on the vector unit. A tile is searched for its best block as often as the query with the most
newcomers needs; a stream in random order holds about M / i newcomers in its i-th tile, so that most tiles need few
searches and a tile without newcomers costs one comparison. Tiles behind a query tile's last candidate are not visited.

Exact, ties included: blocks come in ascending order and the best is taken from the lowest index, so that a newcomer
must beat the worst block held strictly, and among equally bad ones the one of highest index leaves.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu.tile import LANES, SUBLANES
from subq_jax.kernels.xla.layout import fold, fold_keys, whole_rows
from subq_jax.selection.choose import matmul_precision
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import score_scale
from subq_jax.selection.visibility import QueryPlace, candidate_range

LOWEST = float(jnp.finfo(jnp.float32).min)


class ChoiceSizes(NamedTuple):
    """Static sizes: query tokens of a tile, blocks of a tile, bytes of VMEM for a span of summaries (and the next)."""

    queries: int = 128
    blocks: int = 256
    bytes: int = 4 << 20

    def span(self, width: int, itemsize: int) -> int:
        """Blocks whose summaries are in VMEM at a time."""
        return max(1, self.bytes // (_round_up(width, LANES) * itemsize * self.blocks)) * self.blocks

    def vmem(self, width: int, itemsize: int, count: int) -> int:
        """About the bytes of VMEM to choose `count` blocks: a span, a tile of queries, the next of both, scores."""
        router = (self.span(width, itemsize) + self.queries) * _round_up(width, LANES) * itemsize
        return 2 * router + 4 * self.queries * (self.blocks + 4 * _round_up(count, SUBLANES))


def best_blocks(router_q, summaries, place: QueryPlace, config: SelectionConfig, sizes: ChoiceSizes):
    """The contract's flat choice for router_q [B, T, K, R] among summaries [B, K, NB, R].

    Returns:
      block ids int32 [X, M, T] ascending, then -1, and their scores float32 [X, M, T], 0 where the id is -1.
    """
    (batch, queries, kv_heads, width), num_blocks = router_q.shape, summaries.shape[2]
    dtype = jnp.dtype(jnp.promote_types(router_q.dtype, summaries.dtype))
    tile = min(sizes.blocks, _round_up(num_blocks, SUBLANES))
    span = min(sizes.span(width, dtype.itemsize), _round_up(num_blocks, tile))
    slots = _round_up(config.num_blocks, SUBLANES)
    padded = _round_up(queries, sizes.queries)

    router_q = whole_rows(fold_keys(router_q.astype(dtype)), sizes.queries)
    summaries = whole_rows(fold(summaries.astype(dtype)), span)
    low, high = (whole_rows(x[..., 0], sizes.queries, fill)[:, None]
                 for x, fill in zip(candidate_range(place, config), (0, -1), strict=True))

    of_sequence = pl.BlockSpec((1, 1, sizes.queries), lambda x, t, s: (x // kv_heads, 0, t))
    result = pl.BlockSpec((1, slots, sizes.queries), lambda x, t, s: (x, 0, t))
    rows = batch * kv_heads
    ids, scores = pl.pallas_call(
        functools.partial(_kernel, tile=tile, count=config.num_blocks),
        grid=(rows, padded // sizes.queries, summaries.shape[1] // span),
        in_specs=[of_sequence, of_sequence,
                  pl.BlockSpec((1, sizes.queries, width), lambda x, t, s: (x, t, 0)),
                  pl.BlockSpec((1, span, width), lambda x, t, s: (x, s, 0))],
        out_specs=[result, result],
        out_shape=[jax.ShapeDtypeStruct((rows, slots, padded), t) for t in (jnp.int32, jnp.float32)],
        scratch_shapes=[pltpu.VMEM((tile, sizes.queries), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=_cost(rows, queries, num_blocks, width, config.num_blocks, dtype),
        name="best_blocks",
    )(low, high, router_q, summaries)
    none = jnp.iinfo(jnp.int32).max
    ids, scores = (x[:, : config.num_blocks, :queries] for x in (ids, scores))
    ids, scores = jax.lax.sort((jnp.where(ids < 0, none, ids), scores), dimension=1, num_keys=1)
    return jnp.where(ids == none, -1, ids), jnp.where(ids == none, 0.0, scores)


def _kernel(low_ref, high_ref, router_q_ref, summaries_ref, ids_ref, scores_ref, tile_ref, *, tile: int, count: int):
    span = summaries_ref.shape[1]
    slots, lanes = ids_ref.shape[1:]
    first = pl.program_id(2) * span

    @pl.when(pl.program_id(2) == 0)
    def _():
        slot = jax.lax.broadcasted_iota(jnp.int32, (slots, lanes), 0)
        ids_ref[0] = -1 - slot  # distinct, so that exactly one empty slot is taken at a time
        scores_ref[0] = jnp.where(slot < count, -jnp.inf, jnp.inf)  # what fills up the last sublanes never leaves

    low, high = low_ref[0], high_ref[0]
    some = high >= low
    start = jnp.min(jnp.where(some, low, jnp.iinfo(jnp.int32).max))
    stop = jnp.max(jnp.where(some, high + 1, 0))
    precision = matmul_precision(router_q_ref.dtype)
    index = jax.lax.broadcasted_iota(jnp.int32, (tile, lanes), 0)

    def visit(i, carry):
        scores = jax.lax.dot_general(
            summaries_ref[0, pl.ds(pl.multiple_of(i * tile, tile), tile)], router_q_ref[0], (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32) * score_scale(router_q_ref.shape[-1])
        block = first + i * tile + index
        scores = jnp.where((block >= low) & (block <= high), jnp.maximum(scores, LOWEST), -jnp.inf)
        tile_ref[...] = scores
        better = (scores > jnp.min(scores_ref[0], axis=0, keepdims=True)).astype(jnp.float32)
        newcomers = jnp.max(jnp.sum(better, axis=0, keepdims=True)).astype(jnp.int32)
        jax.lax.fori_loop(0, jnp.minimum(newcomers, count), functools.partial(insert, first + i * tile), 0)
        return carry

    def insert(base, _, carry):
        scores, held, ids = tile_ref[...], scores_ref[0], ids_ref[0]
        best = jnp.max(scores, axis=0, keepdims=True)
        where = jnp.min(jnp.where(scores == best, index, tile), axis=0, keepdims=True)
        tile_ref[...] = jnp.where(index == where, -jnp.inf, scores)
        worst = jnp.min(held, axis=0, keepdims=True)
        leaving = jnp.max(jnp.where(held == worst, ids, -1 - slots), axis=0, keepdims=True)
        taken = (ids == leaving) & (best > worst)
        scores_ref[0] = jnp.where(taken, best, held)
        ids_ref[0] = jnp.where(taken, base + where, ids)
        return carry

    tiles = span // tile
    begin = jnp.clip((start - first) // tile, 0, tiles)
    end = jnp.clip((stop - first + tile - 1) // tile, 0, tiles)
    jax.lax.fori_loop(begin, end, visit, 0)


def _cost(rows, queries, num_blocks, width, count, dtype):
    """Causal work on average: half of all blocks."""
    pairs = rows * queries * num_blocks // 2
    moved = rows * (queries + num_blocks) * width * dtype.itemsize + rows * queries * count * 8
    return pl.CostEstimate(flops=2 * pairs * width, bytes_accessed=moved, transcendentals=0)


def _round_up(x: int, multiple: int) -> int:
    return math.ceil(x / multiple) * multiple
