"""Selective attention in plain XLA: any backend, linear memory, its own memory-lean backward.

Three stages: choose blocks (chunked over queries, scores never whole), attend (local blocks as bands, sink and
selected blocks as gathered entries, merged by log-sum-exp; a few queries gather what they see at once), and a backward
that recomputes every tile from the saved selection, output and log-sum-exp. Residuals are O(S + T * M).
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.kernels.xla.banded import banded_backward, banded_forward
from subq_jax.kernels.xla.direct import direct_forward
from subq_jax.kernels.xla.few import best_first, pairs_compared
from subq_jax.kernels.xla.gathered import gathered_backward, gathered_forward
from subq_jax.kernels.xla.grain import grain
from subq_jax.kernels.xla.layout import (
    fold,
    fold_keys,
    fold_queries,
    map_query_chunks,
    repeat_heads,
    unfold,
    unfold_keys,
    unfold_queries,
)
from subq_jax.kernels.xla.tile import NO_KEYS, merge, row_delta
from subq_jax.selection.choose import (
    admit_selection,
    block_scores,
    choose_blocks,
    in_order,
    matmul_precision,
    scores_of,
)
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.summaries import score_scale, split_blocks
from subq_jax.selection.tree import SummaryTree, search_tree
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys, nothing_for_padding, sink_ids

LARGEST_GATE = 1e38  # two differ by what float32 holds, in powers of 2 as well


def xla_selective_attention(
    inputs: SelectiveInputs, config: SelectionConfig, *, gate: bool
) -> tuple[Outputs, Selection]:
    """Selective attention; see `subq_jax.selective_attention`.

    Returns:
      the output [B, T, N, H] in `q`'s dtype and the selection int32 [B, T, K, M].
    """
    q, k, v, router_q, tree, place, present, selection = inputs
    summaries = tree.levels[0]
    few = few_queries(q.shape[1], k.shape[1], config)
    chosen, scores = choose(router_q, tree, place, config, selection, few=few)
    gates = gates_of(scores, gate)
    out = attend_chosen(config, gate, q, k, v, router_q, summaries, chosen, gates, place, present)
    return out, (in_order(chosen) if few else chosen).swapaxes(1, 2)


def gates_of(scores, gate: bool):
    """What is added to the logits of chosen blocks, all of whose `scores` are given."""
    # Where a score overflows, an infinite gate would be NaN to tokens of the same warp that count the block 0 times.
    return jnp.clip(scores, -LARGEST_GATE, LARGEST_GATE) if gate else jnp.zeros_like(scores)


def fall_back(
    name: str, reason: str, inputs: SelectiveInputs, config: SelectionConfig, *, gate: bool
) -> tuple[Outputs, Selection]:
    """`xla_selective_attention` in place of the implementation `name`, with a warning that says why."""
    warnings.warn(f'implementation="{name}" falls back to "xla": {reason}', stacklevel=5)  # at the public call
    return xla_selective_attention(inputs, config, gate=gate)


def unsupported_cache(inputs: SelectiveInputs, config: SelectionConfig) -> str | None:
    """Why kernels that read whole blocks from the caches cannot decode; None where they can, or nothing is decoded."""
    length, size = inputs.k.shape[1], config.block_size
    if few_queries(inputs.q.shape[1], length, config) and length % size:
        return f"a cache must hold a multiple of block_size={size} positions to be decoded from, got {length}"
    return None


def choose(
    router_q, tree: SummaryTree, place: QueryPlace, config: SelectionConfig, selection: Selection | None = None,
    *, few: bool = False
):
    """The selection int32 [B, K, T, M] and its scores float32, a chunk of queries at a time; no gradient.

    Ids ascend, then -1; on a GPU those that `few` queries choose without a tree may stand in the order of their scores.
    """
    router_q, tree = jax.lax.stop_gradient((router_q, tree))
    batch, queries, heads, width = router_q.shape
    num_blocks = tree.levels[0].shape[2]
    if selection is not None:
        held = config.num_blocks * width
    elif config.fanouts:
        held = (config.beam_width + 2) * max(config.fanouts) * width + tree.levels[-1].shape[2]
    else:
        held = num_blocks
    rows = max(1, min(queries, grain().scores // (batch * heads * held)))

    def chunk(args):
        router_q, place, selection = args
        if selection is not None:
            chosen = admit_selection(selection.swapaxes(1, 2), place, config, num_blocks)
            picked = scores_of(router_q, tree.levels[0], jnp.maximum(chosen, 0))
        elif config.fanouts:
            chosen, picked, _ = search_tree(router_q, tree, place, config)
        elif few and pairs_compared(batch * heads * router_q.shape[1], num_blocks, config.num_blocks) <= grain().pairs:
            chosen, picked = best_first(block_scores(router_q, tree.levels[0]), place, config)
        else:
            scores = block_scores(router_q, tree.levels[0])
            chosen = choose_blocks(scores, place, config)
            picked = jnp.take_along_axis(scores, jnp.maximum(chosen, 0), axis=-1)
        picked = jnp.where(chosen >= 0, jnp.maximum(picked, NO_KEYS), 0.0)  # -inf - -inf is NaN where parts are merged
        return tuple(x.swapaxes(1, 2) for x in (chosen, picked))

    results = map_query_chunks(chunk, (router_q, place, selection), rows)
    return tuple(x.swapaxes(1, 2) for x in results)


def few_queries(queries: int, keys: int, config: SelectionConfig) -> bool:
    """Whether the queries read less from the keys where they are stored than laying the keys out would."""
    return queries * config.budget <= keys


class _Rows(NamedTuple):
    """What query rows see, in kernel layout: X = B * K rows, one per sequence and KV head."""

    q: jax.Array  # [X, T, G, H]
    ids: jax.Array  # [X, T, J + M], sink blocks first
    bias: jax.Array  # [X, T, J + M]
    lower: jax.Array  # [X, T], first local position
    position: jax.Array  # [X, T]


def _rows(config, q, kv_heads: int, chosen, scores, place: QueryPlace) -> _Rows:
    sinks = sink_ids(place, config)
    ids = jnp.concatenate([repeat_heads(sinks, kv_heads), fold(chosen)], axis=-1)
    bias = jnp.concatenate([jnp.zeros((*ids.shape[:2], config.sink_blocks)), fold(scores)], axis=-1)
    lower = jnp.maximum(place.first_block, place.block - config.local_blocks + 1) * config.block_size
    lower, position = (repeat_heads(x, kv_heads) for x in (nothing_for_padding(lower, place), place.position))
    return _Rows(fold_queries(q, kv_heads), ids, bias, lower, position)


def _local_reach(config: SelectionConfig) -> int:
    return config.block_size * config.local_blocks - 1


def _keys(config, x, present):
    """Keys or values as rows [X, S, H] and as blocks [X, NB, c, H], zero where absent."""
    x = clear_absent_keys(x, present)
    return fold_keys(x), fold(split_blocks(x, config.block_size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_chosen(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    """Attention [B, T, N, H] to sink blocks, local blocks and `chosen` [B, K, T, M], whose float32 `scores` count."""
    return _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


def _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    rows, size, reach = _rows(config, q, k.shape[2], chosen, scores, place), config.block_size, _local_reach(config)
    if few_queries(q.shape[1], k.shape[1], config):
        out, lse = direct_forward(rows.q, k, v, rows.ids, rows.bias, rows.lower, rows.position, size, reach)
    else:
        (k_rows, k_blocks), (v_rows, v_blocks) = (_keys(config, x, present) for x in (k, v))
        local = banded_forward(rows.q, k_rows, v_rows, rows.lower, rows.position, reach)
        out, lse = merge([local, gathered_forward(rows.q, k_blocks, v_blocks, rows.ids, rows.bias)])
    out = unfold_queries(out, q.shape[0]).astype(q.dtype)
    return out, (q, k, v, router_q, summaries, chosen, scores, place, present, out, lse)


def _attend_backward(config, gate, residuals, d_out):
    q, k, v, router_q, summaries, chosen, scores, place, present, out, lse = residuals
    (batch, length, kv_heads, _), sinks = k.shape, config.sink_blocks
    rows = _rows(config, q, kv_heads, chosen, scores, place)
    (k_rows, k_blocks), (v_rows, v_blocks) = (_keys(config, x, present) for x in (k, v))
    d_out, out = fold_queries(d_out, kv_heads), fold_queries(out, kv_heads)
    delta = row_delta(d_out, out)
    gated = fold_keys(router_q if gate else router_q[..., :0])

    local = banded_backward(
        rows.q, k_rows, v_rows, rows.lower, rows.position, _local_reach(config), d_out, lse, delta)
    dq, dk, dv, d_bias, d_side = gathered_backward(
        rows.q, k_blocks, v_blocks, rows.ids, rows.bias, d_out, lse, delta, gated, sinks)

    join = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])[:, :length]
    dq = unfold_queries(local[0] + dq, batch).astype(q.dtype)
    dk = unfold_keys(local[1] + join(dk), batch).astype(k.dtype)
    dv = unfold_keys(local[2] + join(dv), batch).astype(v.dtype)
    d_router_q, d_summaries = jnp.zeros_like(router_q), jnp.zeros_like(summaries)
    if gate:
        d_scores = unfold(d_bias[..., sinks:], batch)
        d_router_q, d_summaries = router_gradients(d_scores, unfold(d_side, batch), router_q, summaries, chosen)
    return dq, dk, dv, d_router_q, d_summaries, None, None, None, None


def few_backward(config, gate, arrays, d_out):
    """The backward pass of `attend_chosen`'s arguments, for kernels that decode and have none of their own.

    Training has as many queries as keys, so that nothing waits for these gradients.
    """
    *differentiable, chosen, scores, place, present = arrays
    attend = lambda *x: attend_chosen(config, gate, *x, chosen, scores, place, present)
    return *jax.vjp(attend, *differentiable)[1](d_out), None, None, None, None


def router_gradients(d_scores, d_side, router_q, summaries, chosen):
    """Gradients of router_q [B, T, K, R] and summaries [B, K, NB, R], in their dtypes, through the gates.

    Args:
      d_scores: float32 [B, K, T, M], the gradients of the scores of `chosen`, whose places without a block are 0.
      d_side: float32 [B, K, NB, R], every block's sum of router queries times `d_scores`.
      router_q, summaries: what was scored.
      chosen: int32 [B, K, T, M], -1 for none.
    """
    scale = score_scale(router_q.shape[-1])
    d_router_q = weighted_summaries(d_scores * scale, summaries, chosen)
    return d_router_q.astype(router_q.dtype), (d_side * scale).astype(summaries.dtype)


def weighted_summaries(weights, summaries, chosen):
    """Sum over the chosen blocks [B, K, T, M] of their summaries times `weights`: float32 [B, T, K, R]."""
    batch, heads, queries, slots = chosen.shape
    rows = max(1, min(queries, grain().scores // (batch * heads * slots * summaries.shape[-1])))
    take = jax.vmap(jax.vmap(lambda table, ids: jnp.take(table, ids, axis=0, mode="clip"), in_axes=(0, 1), out_axes=1))

    def chunk(args):
        weights, chosen = args
        listed = take(summaries, chosen).astype(weights.dtype)
        listed = jnp.where((chosen >= 0)[..., None], listed, 0)
        return jnp.einsum("btkm,btkmr->btkr", weights, listed, precision=matmul_precision(weights.dtype))

    return map_query_chunks(chunk, (weights.swapaxes(1, 2), chosen.swapaxes(1, 2)), rows)


attend_chosen.defvjp(_attend_forward, _attend_backward)
