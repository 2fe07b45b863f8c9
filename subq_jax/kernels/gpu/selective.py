"""Selective attention on Hopper GPUs: choose, list the blocks of every tile, attend.

Prefill and training run the kernels of this folder. Plain XLA does what it does as well: pooling the summaries (one
pass over the router's keys), the search of a tree, sorting the inverse lists, and choosing for the few queries of a
decoding step, which then read what they see where it is cached. The backward pass makes the lists again from the saved
selection and recomputes every weight from the saved log-sum-exps: queries and gates along the tokens' lists, keys,
values and summaries along the inverse.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.kernels.gpu.attend import attend
from subq_jax.kernels.gpu.backward_keys import backward_keys
from subq_jax.kernels.gpu.backward_queries import backward_queries
from subq_jax.kernels.gpu.choose import QUERIES, best_blocks, tile_of
from subq_jax.kernels.gpu.decode import attend_cache
from subq_jax.kernels.gpu.inverse import inverse_lists
from subq_jax.kernels.gpu.limits import MULTIPROCESSORS, unsupported
from subq_jax.kernels.gpu.lists import TileBlocks, TokenLists, tile_blocks, token_lists
from subq_jax.kernels.gpu.warps import WarpTile, group_rows
from subq_jax.kernels.xla.layout import (
    fold,
    fold_keys,
    fold_queries,
    repeat_heads,
    unfold,
    unfold_keys,
    unfold_queries,
    whole_rows,
)
from subq_jax.kernels.xla.selective import (
    LARGEST_GATE,
    choose,
    fall_back,
    few_backward,
    few_queries,
    gates_of,
    router_gradients,
)
from subq_jax.kernels.xla.tile import row_delta
from subq_jax.selection.choose import in_order
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.visibility import QueryPlace, candidate_range, clear_absent_keys


def gpu_selective_attention(
    inputs: SelectiveInputs, config: SelectionConfig, *, gate: bool
) -> tuple[Outputs, Selection]:
    """Selective attention; see `subq_jax.selective_attention`. Sizes the kernels do not take fall back to XLA.

    Returns:
      the output [B, T, N, H] in `q`'s dtype and the selection int32 [B, T, K, M].
    """
    q, k, v, router_q, tree, place, present, selection = inputs
    reason = unsupported(inputs, config)
    if reason is not None:
        return fall_back("gpu", reason, inputs, config, gate=gate)
    if few_queries(q.shape[1], k.shape[1], config):
        chosen, scores = choose(router_q, tree, place, config, selection, few=True)
        gates = gates_of(scores, gate)
        out = _attend_few(config, gate, q, k, v, router_q, tree.levels[0], chosen, gates, place, present)
        return out, in_order(chosen).swapaxes(1, 2)
    if selection is None and not config.fanouts:
        router_q_fixed, summaries = jax.lax.stop_gradient((router_q, tree.levels[0]))
        chosen, scores = choose_flat(router_q_fixed, summaries, place, config)
    else:
        chosen, scores = (fold(x) for x in choose(router_q, tree, place, config, selection))
        order = jnp.argsort(-chosen, axis=-1)  # descending, then -1
        chosen, scores = (jnp.take_along_axis(x, order, axis=-1) for x in (chosen, scores))
    gates = gates_of(scores, gate)
    gates = jnp.where(jnp.isnan(gates), -LARGEST_GATE, gates)  # or it would reach the other tokens of its warp
    out = _attend(config, gate, q, k, v, router_q, tree.levels[0], chosen, gates, place, present)
    return out, unfold_keys(in_order(chosen), q.shape[0])


def choose_flat(router_q, summaries, place: QueryPlace, config: SelectionConfig):
    """The flat choice of router_q [B, T, K, R] among summaries [B, K, NB, R], no tree.

    Returns:
      block ids int32 [X, T, M], descending and then -1, and their scores float32 [X, T, M].
    """
    queries, kv_heads = router_q.shape[1:3]
    low, high = (repeat_heads(x[..., 0], kv_heads) for x in candidate_range(place, config))
    summaries = whole_rows(fold(summaries.astype(router_q.dtype)), tile_of(config.num_blocks))
    ids, scores = best_blocks(
        whole_rows(fold_keys(router_q), QUERIES), summaries, whole_rows(low, QUERIES), whole_rows(high, QUERIES, -1),
        config.num_blocks, MULTIPROCESSORS)
    return ids[:, :queries], scores[:, :queries]


class Tiles(NamedTuple):
    """The arguments that the kernels of attention share."""

    q: jax.Array  # rows [X, P * G, H], see `token_rows`
    k: jax.Array  # [X, S, H], whole blocks
    v: jax.Array
    lists: TokenLists
    blocks: TileBlocks
    offset: jax.Array  # int32 [X], position of the first token


def tile_shape(heads: int, config: SelectionConfig) -> WarpTile:
    """The tiles of so many query heads of a KV head."""
    return WarpTile(group_rows(heads), config.block_size)


def lay_out(config: SelectionConfig, q, k, v, chosen, scores, place: QueryPlace, present) -> Tiles:
    """What the kernels along the lists read.

    Args:
      config: of the blocks.
      q, k, v: [B, T, N, H], [B, S, K, H] twice.
      chosen: int32 [X, T, M], block ids descending, then -1.
      scores: float32 [X, T, M], their gates.
      place: where the queries stand; fields [B, T].
      present: bool [B, S], which keys exist, or None for all.
    """
    kv_heads, size = k.shape[2], config.block_size
    shape = tile_shape(q.shape[2] // kv_heads, config)
    whole = lambda x, fill=0: a_tile_at_least(x, shape, fill)
    lists = token_lists(whole(chosen, -1), whole(scores), jax.tree.map(whole, place), config, kv_heads)
    k, v = (whole_rows(fold_keys(clear_absent_keys(x, present)), size) for x in (k, v))
    blocks = tile_blocks(lists.ids, shape, k.shape[1] // size, MULTIPROCESSORS)
    return Tiles(token_rows(q, kv_heads, shape), k, v, lists, blocks, repeat_heads(place.position[:, 0], kv_heads))


def a_tile_at_least(x, shape: WarpTile, fill=0):
    """[X, T, ...] -> [X, P, ...]: filled up where T is less than a tile's tokens."""
    return whole_rows(x, max(x.shape[1], shape.tokens), fill)


def token_rows(q, kv_heads: int, shape: WarpTile):
    """Queries as rows, token by token, groups filled up: [X, P * G, H]."""
    q = a_tile_at_least(fold_queries(q, kv_heads), shape)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, shape.group - q.shape[2]), (0, 0)))
    return q.reshape(q.shape[0], -1, q.shape[3])


def _from_rows(rows, like, kv_heads: int, shape: WarpTile):
    """The inverse of `token_rows`: [B, T, N, H]."""
    rows = rows.reshape(rows.shape[0], -1, shape.group, rows.shape[2])
    return unfold_queries(rows[:, : like.shape[1], : like.shape[2] // kv_heads], like.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    return _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


def _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    shape = tile_shape(q.shape[2] // k.shape[2], config)
    out, lse = attend(*lay_out(config, q, k, v, chosen, scores, place, present), shape=shape, ctas=MULTIPROCESSORS)
    out = _from_rows(out, q, k.shape[2], shape)
    return out, (q, k, v, router_q, summaries, chosen, scores, place, present, out, lse)


def _attend_backward(config, gate, residuals, d_out):
    q, k, v, router_q, summaries, chosen, scores, place, present, out, lse = residuals
    (batch, length, kv_heads), queries, size = k.shape[:3], q.shape[1], config.block_size
    shape = tile_shape(q.shape[2] // kv_heads, config)
    tiles = lay_out(config, q, k, v, chosen, scores, place, present)
    d_rows = token_rows(d_out, kv_heads, shape)
    delta = token_rows(row_delta(d_out, out)[..., None], kv_heads, shape)[..., 0]
    dq, d_gates = backward_queries(
        tiles.q, d_rows, lse, delta, *tiles[1:], shape=shape, ctas=MULTIPROCESSORS)

    slots = slice(config.local_blocks, config.local_blocks + config.num_blocks)
    d_scores = zero_sum(d_gates, tiles.lists.ids)[:, :queries, slots]
    d_scores = jnp.where(chosen >= 0, d_scores, 0.0) if gate else jnp.zeros(chosen.shape)
    weights = jnp.zeros(tiles.lists.ids.shape).at[:, :queries, slots].set(d_scores)
    inverse = inverse_lists(tiles.lists, weights, tiles.k.shape[1] // size, size, MULTIPROCESSORS)
    dk, dv, side = backward_keys(
        tiles.q, d_rows, lse, delta, a_tile_at_least(fold_keys(router_q), shape), tiles.k, tiles.v, inverse,
        tiles.offset, shape.group, size, MULTIPROCESSORS)

    dq = _from_rows(dq, q, kv_heads, shape)
    dk, dv = (unfold_keys(x[:, :length], batch) for x in (dk, dv))
    d_scores, side, chosen = (unfold(x, batch) for x in (d_scores, side, chosen))
    d_router_q, d_summaries = router_gradients(d_scores, side, router_q, summaries, chosen)
    return dq, dk, dv, d_router_q, d_summaries, None, None, None, None


def zero_sum(d_gates, ids):
    """Gradients of the gates [X, P, J] of listed blocks, corrected so that a token's add up to 0, as a softmax's do.

    Rounding in `delta` shifts all blocks of a token to one side: little of each gradient, and much of what a router
    query gets, whose summaries have much in common (docs/gpu.md has figures). Every block gives up the same share of
    its own gradient, so that one with no weight, whose gradient is next to nothing, is not charged with what belongs to
    others.
    """
    d_gates = jnp.where(ids >= 0, d_gates, 0.0)
    size = jnp.abs(d_gates)
    excess = d_gates.sum(axis=-1, keepdims=True) / jnp.maximum(size.sum(axis=-1, keepdims=True), 1e-37)
    return d_gates - excess * size


_attend.defvjp(_attend_forward, _attend_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_few(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    out = attend_cache(q, k, v, chosen, scores, place, config, MULTIPROCESSORS)
    return unfold_queries(out, q.shape[0]).astype(q.dtype)


def _attend_few_forward(config, gate, *arrays):
    return _attend_few(config, gate, *arrays), arrays


_attend_few.defvjp(_attend_few_forward, few_backward)
