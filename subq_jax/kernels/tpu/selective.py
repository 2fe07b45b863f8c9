"""Selective attention on the TPU: choose, list the blocks of every tile, attend.

Plain XLA does what it does as well: pooling the summaries (one pass over the router's keys), the search of a tree,
sorting ids, and the choice of the few queries of a decoding step, which attend straight to the caches. The backward
pass recomputes every tile from the saved selection, output and log-sum-exp: queries and gates along the tiles' lists,
keys, values and summaries along the lists' inverse.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.kernels.tpu.attend import attend_forward
from subq_jax.kernels.tpu.backward_keys import backward_keys
from subq_jax.kernels.tpu.backward_queries import backward_queries
from subq_jax.kernels.tpu.choose import ChoiceSizes, best_blocks
from subq_jax.kernels.tpu.decode import attend_cache
from subq_jax.kernels.tpu.limits import unsupported
from subq_jax.kernels.tpu.lists import tile_lists, tiles_of_blocks
from subq_jax.kernels.tpu.tile import AttendSizes, Slots
from subq_jax.kernels.xla.layout import (
    fold,
    fold_keys,
    fold_queries,
    join_rows,
    repeat_heads,
    split_rows,
    unfold,
    unfold_keys,
    unfold_queries,
    whole_rows,
)
from subq_jax.kernels.xla.selective import (
    choose,
    fall_back,
    few_backward,
    few_queries,
    gates_of,
    weighted_summaries,
)
from subq_jax.kernels.xla.tile import row_delta
from subq_jax.selection.choose import in_order
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.summaries import score_scale, split_blocks
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys, local_ids, sink_ids

CHOICE_SIZES, ATTEND_SIZES = ChoiceSizes(), AttendSizes()
WHOLE, CHUNK = 1 << 20, 1 << 18  # queries times KV heads laid out at once; more than WHOLE go in parts of CHUNK


def tpu_selective_attention(
    inputs: SelectiveInputs, config: SelectionConfig, *, gate: bool
) -> tuple[Outputs, Selection]:
    """Selective attention; see `subq_jax.selective_attention`. Sizes the kernels do not take fall back to XLA.

    Returns:
      the output [B, T, N, H] in `q`'s dtype and the selection int32 [B, T, K, M].
    """
    q, k, v, router_q, tree, place, present, selection = inputs
    reason = unsupported(inputs, config)
    if reason is not None:
        return fall_back("tpu", reason, inputs, config, gate=gate)
    if few_queries(q.shape[1], k.shape[1], config):
        chosen, scores = choose(router_q, tree, place, config, selection, few=True)
        gates = gates_of(scores, gate)
        out = _attend_few(config, gate, q, k, v, router_q, tree.levels[0], chosen, gates, place, present)
        return out, in_order(chosen).swapaxes(1, 2)
    if selection is None and not config.fanouts:
        router_q_fixed, summaries = jax.lax.stop_gradient((router_q, tree.levels[0]))
        chosen, scores = best_blocks(router_q_fixed, summaries, place, config, CHOICE_SIZES)
    else:
        chosen, scores = (fold(x).swapaxes(1, 2) for x in choose(router_q, tree, place, config, selection))
    gates = gates_of(scores, gate)
    out = _attend(config, gate, q, k, v, router_q, tree.levels[0], chosen, gates, place, present)
    return out, by_query(chosen, q.shape[0])


def by_query(x, batch: int):
    """[X, M, T] -> [B, T, K, M]. Inside, queries stand on the lanes: M slots would fill a quarter of each line."""
    return unfold_keys(x.swapaxes(1, 2), batch)


class _Queries(NamedTuple):
    """All that is given for each query of a chunk."""

    q: jax.Array  # [B, T, N, H]
    router_q: jax.Array  # [B, T, K, R]; R is 0 without a gate
    place: QueryPlace
    chosen: jax.Array  # [X, M, T]
    scores: jax.Array  # [X, M, T]

    def chunks(self, rows: int) -> "_Queries":
        """The queries in chunks of `rows`, on a new first axis; what fills the last one up does not exist."""
        by_token = jax.tree.map(lambda x: split_rows(x, rows), self[:3])
        by_slot = (split_rows(x.swapaxes(1, 2), rows).swapaxes(2, 3) for x in self[3:])
        return _Queries(*by_token, *by_slot)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    return _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


def _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    blocks = key_value_blocks(k, v, present, config.block_size)

    def chunk(queries: _Queries):
        out, lse = attend_forward(*_lay_out(config, queries, blocks), sizes_for(q, k))
        return unfold_queries(out[:, : queries.q.shape[1]], q.shape[0]), lse

    queries = _Queries(q, router_q if gate else router_q[..., :0], place, chosen, scores)
    out, lse = jax.lax.map(chunk, queries.chunks(chunk_queries(q, k)))
    out = join_rows(out, q.shape[1])
    return out, (queries, k, v, router_q, summaries, present, out, lse)


def _attend_backward(config, gate, residuals, d_out):
    queries, k, v, router_q, summaries, present, out, lse = residuals
    (batch, length, kv_heads), num_queries = k.shape[:3], d_out.shape[1]
    blocks, rows = key_value_blocks(k, v, present, config.block_size), chunk_queries(d_out, k)
    sizes = sizes_for(d_out, k)
    scale = score_scale(router_q.shape[-1])

    def chunk(sums, args):
        queries, d_out, out, lse = args
        tiles = _lay_out(config, queries, blocks)
        tokens = sizes.tokens(tiles.q.shape[2])
        d_out, out = (whole_rows(fold_queries(x, kv_heads), tokens) for x in (d_out, out))
        stats = jnp.concatenate([lse, row_delta(d_out, out).reshape(lse.shape)], axis=2)
        dq, d_gates = backward_queries(tiles.q, d_out, stats, *tiles[1:], sizes)
        inverse = tiles_of_blocks(tiles.lists, blocks.shape[1])
        parts = backward_keys(tiles.q, d_out, stats, blocks, tiles.seen, *inverse, tiles.offset, tiles.slots,
                              sizes, k.dtype if sums is None else jnp.float32)
        sums = parts if sums is None else jax.tree.map(jnp.add, sums, parts)
        dq = unfold_queries(dq[:, : queries.q.shape[1]], batch)
        if not gate:
            return sums, (dq, None)
        d_scores = unfold(d_gates[:, : queries.q.shape[1], tiles.slots.always :], batch) * scale
        d_router_q = weighted_summaries(d_scores, summaries, unfold(queries.chosen.swapaxes(1, 2), batch))
        return sums, (dq, d_router_q.astype(router_q.dtype))

    args = queries.chunks(rows), split_rows(d_out, rows), split_rows(out, rows), lse
    if rows >= num_queries:
        (d_blocks, d_side), (dq, d_router_q) = chunk(None, jax.tree.map(lambda x: x[0], args))
    else:
        nothing = jnp.zeros(blocks.shape), jnp.zeros((*blocks.shape[:2], max(queries.router_q.shape[-1], 1)))
        (d_blocks, d_side), results = jax.lax.scan(chunk, nothing, args)
        dq, d_router_q = jax.tree.map(lambda x: join_rows(x, num_queries), results)
    join = lambda x: unfold_keys(x.reshape(x.shape[0], -1, x.shape[-1])[:, :length], batch).astype(k.dtype)
    dk, dv = join(d_blocks[:, :, 0]), join(d_blocks[:, :, 1])
    if not gate:
        return dq, dk, dv, jnp.zeros_like(router_q), jnp.zeros_like(summaries), None, None, None, None
    d_summaries = (d_side.reshape(summaries.shape) * scale).astype(summaries.dtype)
    return dq, dk, dv, d_router_q, d_summaries, None, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_few(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    return _attend_few_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


def _attend_few_forward(config, gate, *arrays):
    q, k, v, router_q, _, chosen, scores, place, _ = arrays
    chosen, scores = (fold(x).swapaxes(1, 2) for x in (chosen, scores))
    (batch, queries), kv_heads, size = q.shape[:2], k.shape[2], config.block_size
    sizes = sizes_for(q, k)
    tokens = sizes.tokens(q.shape[2] // kv_heads)
    slots, seen, ids = what_is_seen(config, _Queries(q, router_q[..., :0], place, chosen, scores), 1)
    lines = lambda x: whole_rows(
        unfold_keys(x, batch).reshape(batch, queries * kv_heads, *x.shape[2:]), tokens, fill=-1)
    lists = tile_lists(lines(ids), tokens, sizes.step(size * kv_heads))
    out = attend_cache(lines(fold_queries(q, kv_heads)), k, v, lines(seen), lists, place.position[:, 0], size, slots,
                       sizes)
    return out[:, : queries * kv_heads].reshape(q.shape), arrays


_attend_few.defvjp(_attend_few_forward, few_backward)


def sizes_for(q, k) -> AttendSizes:
    """Static sizes for queries [B, T, N, H] and keys [B, S, K, H]."""
    return ATTEND_SIZES.fit(q.shape[2] // k.shape[2], q.shape[3], q.dtype.itemsize)


def chunk_queries(q, k) -> int:
    """Queries laid out at a time: a line of lanes for each and KV head would not fit for millions of them."""
    rows = q.shape[0] * k.shape[2]
    if rows * q.shape[1] <= WHOLE:
        return q.shape[1]
    tokens = ATTEND_SIZES.tokens(q.shape[2] // k.shape[2])
    return max(tokens, CHUNK // rows // tokens * tokens)


class _Tiles(NamedTuple):
    """The arguments of `attend_forward` but the last."""

    q: jax.Array
    blocks: jax.Array
    seen: jax.Array
    lists: jax.Array
    offset: jax.Array
    slots: Slots


def _lay_out(config, queries: _Queries, blocks) -> _Tiles:
    kv_heads = queries.router_q.shape[2]
    sizes = sizes_for(queries.q, queries.router_q)
    tokens = sizes.tokens(queries.q.shape[2] // kv_heads)
    slots, seen, ids = what_is_seen(config, queries, tokens)
    lists = tile_lists(ids, tokens, sizes.step(config.block_size))
    rows = whole_rows(fold_queries(queries.q, kv_heads), tokens)
    return _Tiles(rows, blocks, seen, lists, queries.place.position[:, 0], slots)


def what_is_seen(config: SelectionConfig, queries: _Queries, tokens: int):
    """The lines of `tile.py` and the ids in them: `Slots`, float32 [X, P, L], int32 [X, P, J]."""
    place, heads = queries.place, queries.router_q.shape[2]
    always = jnp.concatenate([sink_ids(place, config), local_ids(place, config)], axis=-1)
    exists = repeat_heads(place.exists, heads)[..., None]
    chosen = jnp.where(exists, queries.chosen.swapaxes(1, 2), -1)
    ids = whole_rows(jnp.concatenate([repeat_heads(always, heads), chosen], axis=-1), tokens, fill=-1)
    gates = jnp.pad(queries.scores.swapaxes(1, 2), ((0, 0), (0, 0), (always.shape[-1], 0)))
    slots = Slots(ids.shape[-1], always.shape[-1], queries.router_q.shape[-1])
    rest = jnp.concatenate([gates, fold_keys(queries.router_q).astype(jnp.float32)], axis=-1)
    seen = jnp.concatenate([ids.astype(jnp.float32), whole_rows(rest, tokens)], axis=-1)
    return slots, jnp.pad(seen, ((0, 0), (0, 0), (0, slots.lanes - seen.shape[-1]))), ids


def key_value_blocks(k, v, present, block_size: int):
    """Keys and values of each block beside each other, so that one copy fetches both: [X, NB, 2, c, H]."""
    return jnp.stack([fold(split_blocks(clear_absent_keys(x, present), block_size)) for x in (k, v)], axis=2)
