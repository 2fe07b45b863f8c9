"""Attention of every query to blocks listed by id, grouped by key block.

Reading K and V per query would move M blocks for each token. Here the (query, slot) entries of a chunk of queries are
sorted by block, cut into tiles of `E` entries that share one block, and each tile is one matrix product of E query
rows (times G heads) with that block. A hub block chosen by every query is simply many tiles.

    entries by query   q0: 3 7   q1: 3 5   q2: 3 7
    sorted by block    3: q0 q1 | q2      5: q1      7: q0 q2        (E = 2: four tiles)

Partial results return to query order by gathers through the inverse permutation; key gradients are summed per block
over the sorted runs and written to distinct rows. Nothing is scattered with addition, so results are the same bits
every time. Shapes: q [X, T, G, H], k and v blocks [X, NB, c, H], ids int32 [X, T, J] (-1 for none), bias float32
[X, T, J]; X = B * K. All listed blocks are wholly visible. Memory is O(T * J), plus one chunk's partial results.

Sorting by block with a preassigned place for each entry follows FlashMoBA (arXiv 2511.11571).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.layout import join_rows, split_rows
from subq_jax.kernels.xla.tile import NO_KEYS, tile_backward, tile_forward

MAX_ENTRIES = 128


class Grain(NamedTuple):
    """How much is done at a time: elements of the logits of one step, and of the partial results of one chunk."""

    step: int
    chunk: int


CPU_GRAIN = Grain(step=1 << 18, chunk=1 << 24)  # a step's logits fit the cache
ACCELERATOR_GRAIN = Grain(step=1 << 25, chunk=1 << 28)  # few large steps: 6 times as fast on an H200 at 64K tokens


def grain() -> Grain:
    """The grain for the default backend."""
    return CPU_GRAIN if jax.default_backend() == "cpu" else ACCELERATOR_GRAIN


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


def tiling(q, k, num_slots: int) -> Shape:
    """Sizes that keep a step's logits and a chunk's partial results near the backend's grain."""
    (batch, num_queries, group, head_dim), (num_blocks, block) = q.shape, k.shape[1:3]
    rows = grain().chunk // (batch * num_slots * group * head_dim)
    rows = min(num_queries, max(64, 1 << max(rows, 1).bit_length() - 1))
    total = rows * num_slots
    entries = min(MAX_ENTRIES, 1 << (max(1, total // num_blocks) - 1).bit_length())
    tiles = max(1, grain().step // (batch * entries * group * block))
    bound = total // entries + min(num_blocks, total)  # each block in use leaves at most one tile unfilled
    tiles = min(tiles, bound)
    return Shape(rows, entries, tiles, -(-bound // tiles) * tiles * entries)


def make_plan(ids, num_blocks: int, shape: Shape) -> Plan:
    """Sorts the entries of a chunk, ids [X, rows, J], by block and assigns each its place."""
    batch, total = ids.shape[0], ids.shape[1] * ids.shape[2]
    key = jnp.where(ids < 0, num_blocks, ids).reshape(batch, total)
    index = jax.lax.broadcasted_iota(jnp.int32, key.shape, 1)
    sorted_key, order = jax.lax.sort((key, index), num_keys=1, is_stable=True)
    edges = jnp.arange(num_blocks + 1, dtype=jnp.int32)
    starts = jax.vmap(lambda row: jnp.searchsorted(row, edges).astype(jnp.int32))(sorted_key)
    tiles_of_block = -(-(starts[:, 1:] - starts[:, :-1]) // shape.entries)
    last_tile = jnp.cumsum(tiles_of_block, axis=1, dtype=jnp.int32)
    first_tile = last_tile - tiles_of_block

    at = lambda table, i: jnp.take_along_axis(table, i, axis=1)
    tile = jnp.arange(shape.places // shape.entries, dtype=jnp.int32)
    block = jax.vmap(lambda row: jnp.searchsorted(row, tile, side="right").astype(jnp.int32))(last_tile)
    used = block < num_blocks
    block = jnp.minimum(block, num_blocks - 1)
    rank = (tile[None] - at(first_tile, block)) * shape.entries + at(starts, block)
    rank = rank[..., None] + jnp.arange(shape.entries, dtype=jnp.int32)[None, None]
    filled = used[..., None] & (rank < at(starts, block + 1)[..., None])
    entry = at(order, jnp.minimum(rank, total - 1).reshape(batch, -1))
    entry = jnp.where(filled.reshape(batch, -1), entry, total)

    listed = sorted_key < num_blocks
    home = jnp.minimum(sorted_key, num_blocks - 1)
    place = at(first_tile, home) * shape.entries + index - at(starts, home)
    place = jnp.where(listed, place, 0)
    inverse = jax.vmap(lambda o, p: jnp.zeros_like(p).at[o].set(p, unique_indices=True))(order, place)
    return Plan(entry, block, inverse, -(-last_tile[:, -1].max() // shape.tiles))


def _rows(x, index):
    """x [X, n, ...] at index [X, ...]: gathers whole rows."""
    return jax.vmap(lambda row, i: jnp.take(row, i, axis=0, mode="clip"))(x, index)


class Step(NamedTuple):
    """The tiles of one step: [X, W, ...]."""

    token: jax.Array  # [X, W, E]
    entry: jax.Array  # [X, W, E]
    filled: jax.Array  # [X, W, E, 1, 1]
    block: jax.Array  # [X, W]
    bias: jax.Array  # [X, W, E, 1, 1]


def _step(plan: Plan, shape: Shape, bias, i) -> Step:
    width = shape.tiles * shape.entries
    batch, total = plan.place.shape
    entry = jax.lax.dynamic_slice_in_dim(plan.entry, i * width, width, axis=1)
    entry = entry.reshape(batch, shape.tiles, shape.entries)
    block = jax.lax.dynamic_slice_in_dim(plan.block, i * shape.tiles, shape.tiles, axis=1)
    filled = (entry < total)[..., None, None]
    entry = jnp.minimum(entry, total - 1)
    entry_bias = jnp.take_along_axis(bias.reshape(batch, total), entry.reshape(batch, width), axis=1)
    return Step(entry // bias.shape[2], entry, filled, block, entry_bias.reshape(filled.shape))


def _put(buffer, value, shape: Shape, i):
    """Writes a step's [X, W, E, ...] into its places of buffer [X, P, ...]."""
    value = value.reshape(value.shape[0], -1, *value.shape[3:]).astype(buffer.dtype)
    return jax.lax.dynamic_update_slice_in_dim(buffer, value, i * shape.tiles * shape.entries, axis=1)


def gathered_forward(q, k, v, ids, bias):
    """Returns float32 (out [X, T, G, H], lse [X, T, G]) over the listed blocks alone."""
    batch, queries, group, head_dim = q.shape
    num_blocks, slots = k.shape[1], ids.shape[2]
    shape = tiling(q, k, slots)

    def chunk(args):
        q, ids, bias = args
        plan = make_plan(ids, num_blocks, shape)

        def body(i, carry):
            outs, lses = carry
            step = _step(plan, shape, bias, i)
            out, lse = tile_forward(_rows(q, step.token), _rows(k, step.block), _rows(v, step.block),
                                    step.bias, step.filled)
            return _put(outs, out, shape, i), _put(lses, lse, shape, i)

        outs = jnp.zeros((batch, shape.places, group, head_dim), q.dtype)
        lses = jnp.full((batch, shape.places, group), NO_KEYS, jnp.float32)
        outs, lses = jax.lax.fori_loop(0, plan.steps, body, (outs, lses))

        listed = (ids >= 0)[..., None]
        lses = jnp.where(listed, _rows(lses, plan.place).reshape(*ids.shape, group), NO_KEYS)
        lse = jax.nn.logsumexp(lses, axis=2)
        weights = jnp.where(listed, jnp.exp(lses - lse[:, :, None]), 0.0)
        outs = _rows(outs, plan.place).reshape(*ids.shape, group, head_dim)
        return (weights[..., None] * outs).sum(axis=2), jnp.maximum(lse, NO_KEYS)

    out, lse = jax.lax.map(chunk, tuple(split_rows(x, shape.rows, fill) for x, fill in ((q, 0), (ids, -1), (bias, 0))))
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

    def chunk(sums, args):
        q, ids, bias, d_out, lse, delta, side = args
        plan = make_plan(ids, num_blocks, shape)

        def body(i, carry):
            dqs, d_biases, sums = carry
            step = _step(plan, shape, bias, i)
            dq, dk, dv, d_logits = tile_backward(
                _rows(q, step.token), _rows(k, step.block), _rows(v, step.block), step.bias, step.filled,
                _rows(d_out, step.token), _rows(lse, step.token), _rows(delta, step.token))
            d_bias = d_logits.sum(axis=(-2, -1))
            weight = jnp.where(step.entry % slots >= first_side, d_bias, 0.0)
            d_side = jnp.einsum("xwe,xwer->xwr", weight, _rows(side, step.token).astype(jnp.float32),
                                precision=jax.lax.Precision.HIGHEST)
            sums = tuple(_add_runs(s, part, step.block) for s, part in zip(sums, (dk, dv, d_side), strict=True))
            return _put(dqs, dq, shape, i), _put(d_biases, d_bias, shape, i), sums

        dqs = jnp.zeros((batch, shape.places, group, head_dim), q.dtype)
        d_biases = jnp.zeros((batch, shape.places), jnp.float32)
        dqs, d_biases, sums = jax.lax.fori_loop(0, plan.steps, body, (dqs, d_biases, sums))

        listed = ids >= 0
        dqs = _rows(dqs, plan.place).reshape(*ids.shape, group, head_dim)
        dq = jnp.where(listed[..., None, None], dqs, 0.0).sum(axis=2, dtype=jnp.float32)
        d_bias = jnp.where(listed, _rows(d_biases, plan.place).reshape(ids.shape), 0.0)
        return sums, (dq, d_bias)

    inputs = ((q, 0), (ids, -1), (bias, 0), (d_out, 0), (lse, 0), (delta, 0), (side, 0))
    zeros = tuple(jnp.zeros(s, jnp.float32) for s in (k.shape, v.shape, (batch, num_blocks, side.shape[-1])))
    chunks = tuple(split_rows(x, shape.rows, fill) for x, fill in inputs)
    (dk, dv, d_side), (dq, d_bias) = jax.lax.scan(chunk, zeros, chunks)
    return join_rows(dq, queries), dk, dv, join_rows(d_bias, queries), d_side


def _add_runs(sums, parts, block):
    """Adds tiles' parts [X, W, ...] to the rows `block` [X, W] of sums [X, NB, ...]; equal blocks are neighbours.

    Each run of equal blocks is summed first and written once, so that no two writes meet.
    """
    width, num_blocks = block.shape[1], sums.shape[1]
    index = jnp.arange(width)
    same = (block[:, :, None] == block[:, None, :]) & (index[:, None] >= index[None])[None]
    runs = jnp.einsum("xij,xj...->xi...", same.astype(jnp.float32), parts, precision=jax.lax.Precision.HIGHEST)
    is_last = jnp.concatenate([block[:, 1:] != block[:, :-1], jnp.ones_like(block[:, :1], dtype=bool)], axis=1)
    target = jnp.where(is_last, block, (num_blocks + index)[None])

    def write(row, run, block, target):
        return row.at[target].set(row[block] + run, mode="drop", unique_indices=True)

    return jax.vmap(write)(sums, runs, block, target)
