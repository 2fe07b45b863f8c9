"""Selective attention on the TPU: choose, list the blocks of every tile, attend.

Prefill and training run the kernels of this folder. Plain XLA does what it does as well: pooling the
summaries (one pass over the router's keys), the search of a tree, sorting ids, and the few queries of a decoding step,
which gather what they see. The backward pass recomputes every tile from the saved selection, output and log-sum-exp:
queries and gates along the tiles' lists, keys, values and summaries along the lists' inverse.
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.kernels.tpu.attend import attend_forward
from subq_jax.kernels.tpu.backward_keys import backward_keys
from subq_jax.kernels.tpu.backward_queries import backward_queries
from subq_jax.kernels.tpu.choose import ChoiceSizes, best_blocks
from subq_jax.kernels.tpu.limits import unsupported
from subq_jax.kernels.tpu.lists import tile_lists, tiles_of_blocks
from subq_jax.kernels.tpu.tile import AttendSizes, Slots
from subq_jax.kernels.xla.layout import (
    fold,
    fold_keys,
    fold_queries,
    join_rows,
    map_query_chunks,
    repeat_heads,
    split_rows,
    unfold_keys,
    unfold_queries,
)
from subq_jax.kernels.xla.selective import choose, sink_ids, weighted_summaries, xla_selective_attention
from subq_jax.kernels.xla.tile import row_delta
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.summaries import score_scale, split_blocks
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys

CHOICE_SIZES, ATTEND_SIZES = ChoiceSizes(), AttendSizes()
CHUNK = 1 << 19  # queries times KV heads


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
        warnings.warn(f'implementation="tpu" falls back to "xla": {reason}', stacklevel=3)
    few = q.shape[1] * config.budget <= k.shape[1]  # they gather less than the kernels would lay out
    if few or reason is not None:
        return xla_selective_attention(inputs, config, gate=gate)
    if selection is None and not config.fanouts:
        router_q_fixed, summaries = jax.lax.stop_gradient((router_q, tree.levels[0]))
        chosen, scores = best_blocks(router_q_fixed, summaries, place, config, CHOICE_SIZES)
        chosen, scores = (unfold_slots(x, q.shape[0]) for x in (chosen, scores))
    else:
        chosen, scores = choose(router_q, tree, place, config, selection)
    scores = scores if gate else jnp.zeros_like(scores)
    out = _attend(config, gate, q, k, v, router_q, tree.levels[0], chosen, scores, place, present)
    return out, chosen.swapaxes(1, 2)


def unfold_slots(x, batch: int):
    """[X, M, T] -> [B, K, T, M]."""
    return x.swapaxes(1, 2).reshape(batch, -1, x.shape[2], x.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    return _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


class _Queries(NamedTuple):
    """All that is given for each query, queries on axis 1."""

    q: jax.Array  # [B, T, N, H]
    router_q: jax.Array  # [B, T, K, R]; R is 0 without a gate
    chosen: jax.Array  # [B, T, K, M]
    scores: jax.Array  # [B, T, K, M]
    place: QueryPlace


def _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    blocks = key_value_blocks(k, v, present, config.block_size)

    def chunk(queries: _Queries):
        tiles = _lay_out(config, queries, blocks)
        out, lse = attend_forward(*tiles, ATTEND_SIZES)
        rows = tiles.q.shape[:3]
        return tuple(unfold_queries(x[:, : queries.q.shape[1]], q.shape[0]) for x in (out, lse.reshape(*rows, 1)))

    queries = _Queries(q, router_q if gate else router_q[..., :0], chosen.swapaxes(1, 2), scores.swapaxes(1, 2), place)
    out, lse = map_query_chunks(chunk, queries, chunk_queries(q, k))
    return out, (queries, k, v, router_q, summaries, present, out, lse)


def _attend_backward(config, gate, residuals, d_out):
    queries, k, v, router_q, summaries, present, out, lse = residuals
    (batch, length), kv_heads, always = k.shape[:2], k.shape[2], config.sink_blocks + config.local_blocks
    blocks, num_queries = key_value_blocks(k, v, present, config.block_size), d_out.shape[1]

    def chunk(sums, args):
        queries, d_out, out, lse = args
        tiles = _lay_out(config, queries, blocks)
        rows = lambda x: whole_tiles(fold_queries(x, kv_heads), ATTEND_SIZES.tokens(tiles.q.shape[2]))
        d_out, lse, delta = rows(d_out), rows(lse), row_delta(rows(d_out), rows(out))
        stats = jnp.stack([x.reshape(*tiles.lists.shape[:2], -1) for x in (lse, delta)], axis=2)
        dq, d_gates = backward_queries(tiles.q, d_out, stats, *tiles[1:], ATTEND_SIZES)
        inverse = tiles_of_blocks(tiles.lists, blocks.shape[1])
        parts = backward_keys(
            tiles.q, d_out, stats, blocks, tiles.seen, *inverse, tiles.offset, tiles.slots, ATTEND_SIZES)
        d_gates = d_gates.reshape(batch, kv_heads, *d_gates.shape[1:]).swapaxes(1, 2)[..., always:]
        trim = lambda x: x[:, : queries.q.shape[1]]
        return jax.tree.map(jnp.add, sums, parts), (unfold_queries(trim(dq), batch), trim(d_gates))

    args, rows = (queries, d_out, out, lse), chunk_queries(d_out, k)
    nothing = jnp.zeros(blocks.shape), jnp.zeros((*blocks.shape[:2], max(queries.router_q.shape[-1], 1)))
    if rows >= num_queries:
        (d_blocks, d_side), (dq, d_scores) = chunk(nothing, args)
    else:
        (d_blocks, d_side), results = jax.lax.scan(
            chunk, nothing, jax.tree.map(lambda x: split_rows(x, rows), args))
        dq, d_scores = (join_rows(x, num_queries) for x in results)

    join = lambda x: unfold_keys(x.reshape(x.shape[0], -1, x.shape[-1])[:, :length], batch).astype(k.dtype)
    dk, dv = join(d_blocks[:, :, 0]), join(d_blocks[:, :, 1])
    d_router_q, d_summaries = jnp.zeros_like(router_q), jnp.zeros_like(summaries)
    if gate:
        scale = score_scale(router_q.shape[-1])
        chosen = queries.chosen.swapaxes(1, 2)
        d_router_q = weighted_summaries(d_scores.swapaxes(1, 2) * scale, summaries, chosen).astype(router_q.dtype)
        d_summaries = (d_side.reshape(summaries.shape) * scale).astype(summaries.dtype)
    return dq, dk, dv, d_router_q, d_summaries, None, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def chunk_queries(q, k) -> int:
    """Queries laid out at a time: a line of lanes for each and KV head would not fit for a million of them."""
    tokens = ATTEND_SIZES.tokens(q.shape[2] // k.shape[2])
    return max(tokens, CHUNK // (q.shape[0] * k.shape[2]) // tokens * tokens)


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
    tokens = ATTEND_SIZES.tokens(queries.q.shape[2] // kv_heads)
    slots, seen, ids = what_is_seen(config, queries, tokens)
    lists = tile_lists(ids, tokens, ATTEND_SIZES.step(config.block_size))
    rows = whole_tiles(fold_queries(queries.q, kv_heads), tokens)
    return _Tiles(rows, blocks, seen, lists, queries.place.position[:, 0], slots)


def whole_tiles(x, tokens: int, fill=0):
    """Pads [X, T, ...] to whole tiles: [X, P, ...]."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % tokens)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)


def what_is_seen(config: SelectionConfig, queries: _Queries, tokens: int):
    """The lines of `tile.py` and the ids in them: `Slots`, float32 [X, P, L], int32 [X, P, J]."""
    place, heads = queries.place, queries.router_q.shape[2]
    always = jnp.concatenate([sink_ids(place, config), local_ids(place, config)], axis=-1)
    chosen = fold_keys(jnp.where(place.exists[..., None, None], queries.chosen, -1))
    ids = whole_tiles(jnp.concatenate([repeat_heads(always, heads), chosen], axis=-1), tokens, fill=-1)
    gates = jnp.pad(fold_keys(queries.scores), ((0, 0), (0, 0), (always.shape[-1], 0)))
    slots = Slots(ids.shape[-1], always.shape[-1], queries.router_q.shape[-1])
    rest = jnp.concatenate([gates, fold_keys(queries.router_q).astype(jnp.float32)], axis=-1)
    seen = jnp.concatenate([ids.astype(jnp.float32), whole_tiles(rest, tokens)], axis=-1)
    return slots, jnp.pad(seen, ((0, 0), (0, 0), (0, slots.lanes - seen.shape[-1]))), ids


def local_ids(place: QueryPlace, config: SelectionConfig):
    """Local blocks of every query: int32 [B, T, local_blocks], -1 for none."""
    local = place.block[..., None] - jnp.arange(config.local_blocks, dtype=jnp.int32)[None, None]
    return jnp.where((local >= place.first_block[..., None]) & place.exists[..., None], local, -1)


def key_value_blocks(k, v, present, block_size: int):
    """Keys and values of each block beside each other, so that one copy fetches both: [X, NB, 2, c, H]."""
    return jnp.stack([fold(split_blocks(clear_absent_keys(x, present), block_size)) for x in (k, v)], axis=2)
