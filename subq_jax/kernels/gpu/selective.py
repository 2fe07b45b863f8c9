"""Selective attention on Hopper GPUs: choose, list the blocks of every tile, attend.

Prefill and training run the kernels of this folder. Plain XLA does what it does as well: pooling the summaries (one
pass over the router's keys), the search of a tree, sorting the inverse lists, and the few queries of a decoding step,
which gather what they see. The backward pass makes the lists again from the saved selection and recomputes every weight
from the saved log-sum-exps: queries and gates along the tiles' lists, keys, values and summaries along the inverse.
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.kernels.gpu.attend import attend
from subq_jax.kernels.gpu.backward_keys import backward_keys
from subq_jax.kernels.gpu.backward_queries import backward_queries
from subq_jax.kernels.gpu.choose import QUERIES, best_blocks, tile_of
from subq_jax.kernels.gpu.inverse import inverse_lists
from subq_jax.kernels.gpu.limits import unsupported
from subq_jax.kernels.gpu.lists import TileLists, TokenLists, gates_of_tokens, tile_lists, token_lists
from subq_jax.kernels.gpu.tile import TILE, tokens_of_tile
from subq_jax.kernels.xla.layout import (
    fold,
    fold_keys,
    fold_queries,
    repeat_heads,
    unfold_keys,
    unfold_queries,
    whole_rows,
)
from subq_jax.kernels.xla.selective import choose, few_queries, weighted_summaries, xla_selective_attention
from subq_jax.kernels.xla.tile import row_delta
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.summaries import score_scale
from subq_jax.selection.visibility import QueryPlace, candidate_range, clear_absent_keys

MULTIPROCESSORS = 132  # of an H100 or H200
PAIRS = 4096  # of a token and a block, that one piece of work adds up for the block


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
        warnings.warn(f'implementation="gpu" falls back to "xla": {reason}', stacklevel=3)
    if reason is not None or few_queries(q, k, config):
        return xla_selective_attention(inputs, config, gate=gate)
    if selection is None and not config.fanouts:
        router_q_fixed, summaries = jax.lax.stop_gradient((router_q, tree.levels[0]))
        chosen, scores = choose_flat(router_q_fixed, summaries, place, config)
    else:
        chosen, scores = (fold(x) for x in choose(router_q, tree, place, config, selection))
        order = jnp.argsort(-chosen, axis=-1)  # descending, then -1
        chosen, scores = (jnp.take_along_axis(x, order, axis=-1) for x in (chosen, scores))
    scores = scores if gate else jnp.zeros_like(scores)
    out = _attend(config, gate, q, k, v, router_q, tree.levels[0], chosen, scores, place, present)
    return out, unfold_keys(_ascending(chosen), q.shape[0])


def _ascending(chosen):
    """Ids descending, then -1 -> ascending, then -1."""
    none = jnp.iinfo(jnp.int32).max
    chosen = jnp.sort(jnp.where(chosen < 0, none, chosen), axis=-1)
    return jnp.where(chosen == none, -1, chosen)


def choose_flat(router_q, summaries, place: QueryPlace, config: SelectionConfig):
    """The flat choice, int32 [X, T, M] descending and then -1, and its scores float32 [X, T, M]."""
    queries, kv_heads = router_q.shape[1:3]
    low, high = (repeat_heads(x[..., 0], kv_heads) for x in candidate_range(place, config))
    summaries = whole_rows(fold(summaries.astype(router_q.dtype)), tile_of(config.num_blocks))
    ids, scores = best_blocks(
        whole_rows(fold_keys(router_q), QUERIES), summaries, whole_rows(low, QUERIES), whole_rows(high, QUERIES, -1),
        config.num_blocks, MULTIPROCESSORS)
    return tuple(x[:, :queries, : config.num_blocks] for x in (ids, scores))


class Tiles(NamedTuple):
    """The arguments that the kernels of attention share."""

    q: jax.Array  # rows [X, P * G, H] of whole tiles
    k: jax.Array  # [X, S, H], whole blocks
    v: jax.Array
    of_tokens: TokenLists
    of_tiles: TileLists
    offset: jax.Array
    tokens: int  # of a tile


def lay_out(config: SelectionConfig, q, k, v, chosen, scores, place: QueryPlace, present) -> Tiles:
    kv_heads, size = k.shape[2], config.block_size
    tokens = tokens_of_tile(q.shape[2] // kv_heads)
    chosen, scores = (whole_rows(x, tokens, fill) for x, fill in ((chosen, -1), (scores, 0)))
    of_tokens = token_lists(chosen, scores, jax.tree.map(lambda x: whole_rows(x, tokens), place), config, kv_heads)
    k, v = (whole_rows(fold_keys(clear_absent_keys(x, present)), size) for x in (k, v))
    of_tiles = tile_lists(of_tokens, tokens, size, k.shape[1] // size, MULTIPROCESSORS)
    offset = repeat_heads(place.position[:, 0], kv_heads)
    return Tiles(tile_rows(q, kv_heads, tokens), k, v, of_tokens, of_tiles, offset, tokens)


def tile_rows(q, kv_heads: int, tokens: int):
    """Queries as rows of whole tiles, groups filled up: [X, P * G, H]."""
    q = whole_rows(fold_queries(q, kv_heads), tokens)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, TILE // tokens - q.shape[2]), (0, 0)))
    return q.reshape(q.shape[0], -1, q.shape[3])


def _from_rows(rows, like, kv_heads: int, tokens: int):
    """The inverse of `tile_rows`: [B, T, N, H]."""
    rows = rows.reshape(rows.shape[0], -1, TILE // tokens, rows.shape[2])
    return unfold_queries(rows[:, : like.shape[1], : like.shape[2] // kv_heads], like.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    return _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


def _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    tiles = lay_out(config, q, k, v, chosen, scores, place, present)
    out, lse = attend(
        tiles.q, tiles.k, tiles.v, tiles.of_tiles, tiles.offset, tiles.tokens, config.block_size, MULTIPROCESSORS)
    out = _from_rows(out, q, k.shape[2], tiles.tokens)
    return out, (q, k, v, router_q, summaries, chosen, scores, place, present, out, lse)


def _attend_backward(config, gate, residuals, d_out):
    q, k, v, router_q, summaries, chosen, scores, place, present, out, lse = residuals
    (batch, length, kv_heads), queries, size = k.shape[:3], q.shape[1], config.block_size
    tiles = lay_out(config, q, k, v, chosen, scores, place, present)
    d_rows, out = (tile_rows(x, kv_heads, tiles.tokens) for x in (d_out, out))
    delta = row_delta(d_rows, out)
    shared = tiles.offset, tiles.tokens, size, MULTIPROCESSORS
    dq, d_gates = backward_queries(tiles.q, d_rows, lse, delta, tiles.k, tiles.v, tiles.of_tiles, *shared)

    slots = slice(config.local_blocks, config.local_blocks + config.num_blocks)
    d_scores = gates_of_tokens(d_gates, tiles.of_tiles.at, tiles.tokens)[:, :queries, slots]
    d_scores = jnp.where(chosen >= 0, d_scores, 0.0) if gate else jnp.zeros(chosen.shape)
    weights = jnp.zeros(tiles.of_tokens.ids.shape).at[:, :queries, slots].set(d_scores)
    inverse = inverse_lists(tiles.of_tokens, weights, tiles.k.shape[1] // size, size, PAIRS)
    dk, dv, side = backward_keys(
        tiles.q, d_rows, lse, delta, whole_rows(fold_keys(router_q), tiles.tokens), tiles.k, tiles.v, inverse, *shared)

    dq = _from_rows(dq, q, kv_heads, tiles.tokens)
    dk, dv = (unfold_keys(x[:, :length], batch) for x in (dk, dv))
    scale = score_scale(router_q.shape[-1])
    d_summaries = (side.reshape(summaries.shape) * scale).astype(summaries.dtype)
    by_head = lambda x: x.reshape(batch, kv_heads, *x.shape[1:])
    d_router_q = weighted_summaries(by_head(d_scores * scale), summaries, by_head(chosen)).astype(router_q.dtype)
    return dq, dk, dv, d_router_q, d_summaries, None, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)
