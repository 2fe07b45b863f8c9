"""Attention of every query to blocks listed by id, grouped by key block.

Reading K and V per query would move M blocks for each token. Here the (query, slot) entries of a chunk of queries are
sorted by block, cut into tiles of `E` entries that share one block, and each tile is one matrix product of E query
rows (times G heads) with that block. A hub block chosen by every query is simply many tiles.

    entries by query   q0: 3 7   q1: 3 5   q2: 3 7
    sorted by block    3: q0 q1 | q2      5: q1      7: q0 q2        (E = 2: four tiles)

Partial results return to query order by gathers through the inverse permutation; key gradients are summed per block
over the sorted runs and written to distinct rows. Nothing is scattered with addition, so results are the same bits
every time. Shapes: q [X, T, G, H], k and v blocks [X, NB, c, H], ids int32 [X, T, J] (-1 for none), bias float32
[X, T, J]; X = B * K. All listed blocks are wholly visible, so that a tile needs no mask, and its bias, one number for
an entry, only shifts the entry's log-sum-exp. Memory is O(T * J), plus one chunk's partial results. What a loop starts
from is made like `q`, so that inside of a `jax.shard_map` it varies over the same mesh axes.

Sorting by block with a preassigned place for each entry follows FlashMoBA (arXiv 2511.11571).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.grain import grain
from subq_jax.kernels.xla.layout import join_rows, split_rows
from subq_jax.kernels.xla.tile import NO_KEYS, tile_backward, tile_partial

MAX_ENTRIES = 128
MIN_ENTRIES = 8
RUN_GROUP = 64  # tiles whose key gradients are summed by one product


class Plan(NamedTuple):
    """Where each entry of a chunk goes. n = rows * J entries, NB blocks, P = padded places of all tiles."""

    entry: jax.Array  # [X, P] the entry at each place; n where the place is empty
    block: jax.Array  # [X, P / E] the block of each tile
    place: jax.Array  # [X, n] the place of each entry; 0 for entries that list no block
    steps: jax.Array  # [] steps that cover every tile in use


class Shape(NamedTuple):
    """Static sizes of the tiling."""

    rows: int  # query tokens of a chunk
    entries: int  # E, entries of a tile
    tiles: int  # tiles of a step, W
    places: int  # P

    @property
    def one_step(self) -> bool:
        """Whether a step holds every place of a chunk."""
        return self.tiles * self.entries == self.places


def tiling(q, k, num_slots: int) -> Shape:
    """Sizes that keep a step's logits and a chunk's partial results near the backend's grain.

    A block in use leaves at most one tile unfilled, so tiles of a quarter of an even share of the entries waste little.
    """
    (batch, num_queries, group, head_dim), (num_blocks, block) = q.shape, k.shape[1:3]
    rows = grain().chunk // (batch * num_slots * group * head_dim)
    rows = min(num_queries, max(64, 1 << max(rows, 1).bit_length() - 1))
    total = rows * num_slots
    entries = 1 << (max(1, total // (grain().share * num_blocks)) - 1).bit_length()
    entries = min(max(entries, MIN_ENTRIES), MAX_ENTRIES, 1 << (total - 1).bit_length())
    tiles = max(1, grain().step // (batch * entries * group * block))
    bound = total // entries + min(num_blocks, total)
    tiles = min(tiles, bound)
    tiles = tiles if tiles <= RUN_GROUP else -(-tiles // RUN_GROUP) * RUN_GROUP
    return Shape(rows, entries, tiles, -(-bound // tiles) * tiles * entries)


def make_plan(ids, num_blocks: int, shape: Shape) -> Plan:
    """Sorts the entries of a chunk, ids [X, rows, J], by block and assigns each its place."""
    batch, total = ids.shape[0], ids.shape[1] * ids.shape[2]
    key = jnp.where(ids < 0, num_blocks, ids).reshape(batch, total)
    index = jax.lax.broadcasted_iota(jnp.int32, key.shape, 1)
    sorted_key, order = jax.lax.sort((key, index), num_keys=1, is_stable=True)
    starts = _run_starts(sorted_key, num_blocks)
    tiles_of_block = -(-(starts[:, 1:] - starts[:, :-1]) // shape.entries)
    last_tile = jnp.cumsum(tiles_of_block, axis=1, dtype=jnp.int32)
    first_tile = last_tile - tiles_of_block

    at = lambda table, i: jnp.take_along_axis(table, i, axis=1)
    tile = jnp.arange(shape.places // shape.entries, dtype=jnp.int32)
    block = _blocks_of_tiles(first_tile, tiles_of_block, tile.shape[0])
    rank = (tile[None] - at(first_tile, block)) * shape.entries + at(starts, block)
    rank = rank[..., None] + jnp.arange(shape.entries, dtype=jnp.int32)[None, None]
    filled = rank < at(starts, block + 1)[..., None]  # tiles behind the last one in use lie beyond their block's end
    entry = at(order, jnp.minimum(rank, total - 1).reshape(batch, -1))
    entry = jnp.where(filled.reshape(batch, -1), entry, total)

    listed = sorted_key < num_blocks
    home = jnp.minimum(sorted_key, num_blocks - 1)
    place = at(first_tile, home) * shape.entries + index - at(starts, home)
    place = jnp.where(listed, place, 0)
    inverse = jax.vmap(lambda o, p: jnp.zeros_like(p).at[o].set(p, unique_indices=True))(order, place)
    return Plan(entry, block, inverse, -(-last_tile[:, -1].max() // shape.tiles))


def _run_starts(sorted_key, num_blocks: int):
    """Where the run of each block begins in sorted keys [X, n]: int32 [X, NB + 1], the run's end for one without."""
    total = sorted_key.shape[1]
    first = jnp.pad(sorted_key[:, 1:] != sorted_key[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    target = jnp.where(first, sorted_key, num_blocks + 1 + jnp.arange(total, dtype=jnp.int32)[None])

    def mark(target):
        room = jnp.full(num_blocks + 1, total, jnp.int32)
        return room.at[target].set(jnp.arange(total, dtype=jnp.int32), mode="drop", unique_indices=True)

    return jax.lax.cummin(jax.vmap(mark)(target), axis=1, reverse=True)


def _blocks_of_tiles(first_tile, tiles_of_block, num_tiles: int):
    """The block of each tile, int32 [X, num_tiles]; tiles behind the last one in use get the last block in use."""
    index = jnp.arange(first_tile.shape[1], dtype=jnp.int32)

    def mark(first, count):
        target = jnp.where(count > 0, first, num_tiles + index)
        return jnp.zeros(num_tiles, jnp.int32).at[target].set(index, mode="drop", unique_indices=True)

    return jax.lax.cummax(jax.vmap(mark)(first_tile, tiles_of_block), axis=1)


def _rows(x, index):
    """x [X, n, ...] at index [X, ...]: gathers whole rows."""
    return jax.vmap(lambda row, i: jnp.take(row, i, axis=0, mode="clip"))(x, index)


class Step(NamedTuple):
    """The tiles of one step: [X, W, ...]."""

    token: jax.Array  # [X, W, E]
    entry: jax.Array  # [X, W, E]
    filled: jax.Array  # [X, W, E]
    block: jax.Array  # [X, W]


def _step(plan: Plan, shape: Shape, slots: int, i) -> Step:
    width = shape.tiles * shape.entries
    batch, total = plan.place.shape
    entry = jax.lax.dynamic_slice_in_dim(plan.entry, i * width, width, axis=1)
    entry = entry.reshape(batch, shape.tiles, shape.entries)
    block = jax.lax.dynamic_slice_in_dim(plan.block, i * shape.tiles, shape.tiles, axis=1)
    filled = entry < total
    entry = jnp.minimum(entry, total - 1)
    return Step(entry // slots, entry, filled, block)


def _empty(q, shape: Shape, arrays):
    """Buffers [X, P, ...] for a step's [X, W, E, ...] results; places that no entry has are never read."""
    if shape.one_step:
        return None
    return tuple(jnp.zeros_like(q, x.dtype, (q.shape[0], shape.places, *x.shape)) for x in arrays)


def _all_steps(plan: Plan, shape: Shape, buffers, carry, body):
    """Runs `body(i, carry) -> (results, carry)` over the steps; returns the results by place, and the carry.

    `buffers` are reused from chunk to chunk: clearing them anew would cost as much as writing the results.
    """
    places = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    if shape.one_step:
        results, carry = body(0, carry)
        return tuple(places(x) for x in results), None, carry

    def loop(i, state):
        buffers, carry = state
        results, carry = body(i, carry)
        put = lambda buffer, x: jax.lax.dynamic_update_slice_in_dim(
            buffer, places(x), i * shape.tiles * shape.entries, axis=1)
        return tuple(put(*pair) for pair in zip(buffers, results, strict=True)), carry

    buffers, carry = jax.lax.fori_loop(0, plan.steps, loop, (buffers, carry))
    return buffers, buffers, carry


def gathered_forward(q, k, v, ids, bias):
    """Returns float32 (out [X, T, G, H], lse [X, T, G]) over the listed blocks alone."""
    batch, queries, group, head_dim = q.shape
    num_blocks, slots = k.shape[1], ids.shape[2]
    shape = tiling(q, k, slots)

    def chunk(buffers, args):
        q, ids, bias = args
        plan = make_plan(ids, num_blocks, shape)

        def body(i, carry):
            step = _step(plan, shape, slots, i)
            return tile_partial(_rows(q, step.token), _rows(k, step.block), _rows(v, step.block)), carry

        (outs, tops, norms), buffers, _ = _all_steps(plan, shape, buffers, (), body)
        listed = (ids >= 0)[..., None]
        tops, norms = (_rows(x, plan.place).reshape(*ids.shape, group) for x in (tops, norms))
        tops = jnp.where(listed, tops + bias[..., None], NO_KEYS)
        top = jnp.maximum(tops.max(axis=2), NO_KEYS)
        weights = jnp.where(listed, jnp.exp(tops - top[:, :, None]), 0.0)
        norm = jnp.where(listed, weights * norms, 0.0).sum(axis=2)
        weights = weights / jnp.where(norm > 0, norm, 1.0)[:, :, None]
        outs = _rows(outs, plan.place).reshape(*ids.shape, group, head_dim)
        lse = jnp.where(norm > 0, top + jnp.log(norm), NO_KEYS)
        return buffers, ((weights[..., None] * outs).sum(axis=2), lse)

    row = jax.ShapeDtypeStruct((group,), jnp.float32)
    buffers = _empty(q, shape, (jax.ShapeDtypeStruct((group, head_dim), q.dtype), row, row))
    chunks = tuple(split_rows(x, shape.rows, fill) for x, fill in ((q, 0), (ids, -1), (bias, 0)))
    _, (out, lse) = jax.lax.scan(chunk, buffers, chunks)
    return join_rows(out, queries), join_rows(lse, queries)


def gathered_backward(q, k, v, ids, bias, d_out, lse, delta, side, first_side: int):
    """Gradients of the listed blocks' part of a softmax with final `lse` [X, T, G].

    `side` [X, T, R] are rows (router queries) whose sum over a block's entries in slots >= `first_side`, weighted by
    the gradient of the entry's bias, is wanted too. Returns float32 (dq, dk [X, NB, c, H], dv, d_bias [X, T, J],
    d_side [X, NB, R]).
    """
    batch, queries, group, head_dim = q.shape
    num_blocks, slots = k.shape[1], ids.shape[2]
    shape = tiling(q, k, slots)

    def chunk(carry, args):
        sums, buffers = carry
        q, ids, bias, d_out, lse, delta, side = args
        plan = make_plan(ids, num_blocks, shape)
        bias = bias.reshape(batch, -1)

        def body(i, sums):
            step = _step(plan, shape, slots, i)
            shift = _rows(lse, step.token) - _rows(bias, step.entry)[..., None]
            shift = jnp.where(step.filled[..., None], shift, jnp.inf)  # weight 0 where there is no entry
            dq, dk, dv, d_logits = tile_backward(
                _rows(q, step.token), _rows(k, step.block), _rows(v, step.block), 0.0, True,
                _rows(d_out, step.token), shift, _rows(delta, step.token), q.dtype)
            d_bias = d_logits.sum(axis=(-2, -1))
            weight = jnp.where(step.entry % slots >= first_side, d_bias, 0.0)
            d_side = jnp.einsum("xwe,xwer->xwr", weight, _rows(side, step.token).astype(jnp.float32),
                                precision=jax.lax.Precision.HIGHEST)
            sums = tuple(_add_runs(s, part, step.block) for s, part in zip(sums, (dk, dv, d_side), strict=True))
            return (dq, d_bias), sums

        (dqs, d_biases), buffers, sums = _all_steps(plan, shape, buffers, sums, body)
        listed = ids >= 0
        dqs = _rows(dqs, plan.place).reshape(*ids.shape, group, head_dim)
        dq = jnp.where(listed[..., None, None], dqs.astype(jnp.float32), 0.0).sum(axis=2)
        d_bias = jnp.where(listed, _rows(d_biases, plan.place).reshape(ids.shape), 0.0)
        return (sums, buffers), (dq, d_bias)

    inputs = ((q, 0), (ids, -1), (bias, 0), (d_out, 0), (lse, 0), (delta, 0), (side, 0))
    sizes = k.shape, v.shape, (batch, num_blocks, side.shape[-1])
    zeros = tuple(jnp.zeros_like(q, jnp.float32, size) for size in sizes)
    buffers = _empty(q, shape, (
        jax.ShapeDtypeStruct((group, head_dim), q.dtype), jax.ShapeDtypeStruct((), jnp.float32)))
    chunks = tuple(split_rows(x, shape.rows, fill) for x, fill in inputs)
    ((dk, dv, d_side), _), (dq, d_bias) = jax.lax.scan(chunk, (zeros, buffers), chunks)
    return join_rows(dq, queries), dk, dv, join_rows(d_bias, queries), d_side


def _add_runs(sums, parts, block):
    """Adds tiles' parts [X, W, ...] to the rows `block` [X, W] of sums [X, NB, ...]; equal blocks are neighbours.

    Each run of equal blocks is summed first and written once, so that no two writes meet. Runs are summed within groups
    of tiles; what a run had in earlier groups is added to its part in a later one.
    """
    (batch, width), num_blocks = block.shape, sums.shape[1]
    group = min(width, RUN_GROUP)
    add = lambda equal, parts: jnp.einsum("...ij,...jf->...if", equal.astype(jnp.float32), parts,
                                          precision=jax.lax.Precision.HIGHEST)
    index, ids = jnp.arange(group), block.reshape(batch, -1, group)
    same = (ids[..., :, None] == ids[..., None, :]) & (index[:, None] >= index[None])[None, None]
    runs = add(same, parts.reshape(*ids.shape, -1))
    number = jnp.arange(ids.shape[1])
    earlier = (ids[:, :, None, 0] == ids[:, None, :, -1]) & (number[:, None] > number[None])[None]
    carried = add(earlier, runs[:, :, -1])
    runs += jnp.where((ids == ids[..., :1])[..., None], carried[:, :, None], 0.0)
    runs = runs.reshape(parts.shape)

    is_last = jnp.concatenate([block[:, 1:] != block[:, :-1], jnp.ones_like(block[:, :1], dtype=bool)], axis=1)
    target = jnp.where(is_last, block, (num_blocks + jnp.arange(width))[None])

    def write(row, run, block, target):
        return row.at[target].set(row[block] + run, mode="drop", unique_indices=True)

    return jax.vmap(write)(sums, runs, block, target)
