"""Tokens chosen by a small scoring network over every past token: accurate, and quadratic in its choosing."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, SegmentIds, Selection, Values
from subq_jax.kernels.xla.dense import chunk_rows
from subq_jax.kernels.xla.layout import (
    fold_keys,
    fold_queries,
    map_query_chunks,
    repeat_heads,
    unfold_queries,
    vary_alike,
)
from subq_jax.kernels.xla.mass import block_mass, divergence
from subq_jax.kernels.xla.tokens import listed_attention
from subq_jax.selection.choose import choose_blocks, matmul_precision
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys, clear_padding_rows, local_ids, sink_ids


class Index(NamedTuple):
    """What the indexer reads: features of I index heads of width R, of every token and KV head."""

    query: jax.Array  # [B, T, K, I, R]
    weight: jax.Array  # [B, T, K, I]
    key: jax.Array  # [B, S, K, R]


def learned_router_attention(
    q: Queries,
    k: Keys,
    v: Values,
    index: Index,
    config: SelectionConfig,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    return_selection: bool = False,
) -> Outputs | tuple[Outputs, Selection]:
    """Exact attention over the past tokens that an indexer scores highest, and over sink and local tokens.

    The score of token s is the sum over index heads of `weight * relu(query . key[s]) / sqrt(R)`. Every past token is
    scored, so choosing is quadratic in the length; scores are held for a chunk of queries only. No gradient reaches
    the index: it learns by `index_divergence`.

    Args:
      q: queries [B, T, N, H].
      k: keys [B, S, K, H].
      v: values [B, S, K, H].
      index: the indexer's features.
      config: the selection in tokens: `block_size` is 1.
      q_offset: position of the first query, int or int32 [B]; default `kv_length - T`.
      kv_length: number of keys that exist, int or int32 [B]; default S.
      segment_ids: int [B, S], packed documents; rows with a negative id output 0.
      return_selection: whether to return the selection too.

    Returns:
      the output [B, T, N, H] in `q`'s dtype; with `return_selection` also int32 [B, T, K, M], the chosen tokens
      ascending, then -1.

    Raises:
      TypeError, ValueError: for arguments that do not fit together, naming the argument.

    Source: the lightning indexer of DeepSeek-V3.2-Exp.
    """
    q, k, v, index, place = _place(q, k, v, index, config, q_offset, kv_length, segment_ids)
    batch, kv_heads = q.shape[0], k.shape[2]
    chosen = choose_tokens(index, place, config)
    always = jnp.concatenate([sink_ids(place, config), local_ids(place, config)], axis=-1)
    ids = jnp.concatenate([repeat_heads(always, kv_heads), fold_keys(chosen)], axis=-1)
    rows = vary_alike((fold_queries(q, kv_heads), fold_keys(k), fold_keys(v), ids))
    out = unfold_queries(listed_attention(*rows), batch)
    return (out, chosen) if return_selection else out


def index_divergence(
    q: Queries, k: Keys, index: Index, config: SelectionConfig, segment_ids: SegmentIds | None = None
) -> jax.Array:
    """`router_divergence` of an indexer, token by token: a float32 scalar whose gradient reaches the index alone."""
    q, k, _, index, place = _place(q, k, k, index, config, None, None, segment_ids)
    q, k = jax.lax.stop_gradient((q, k))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(args):
        q, query, weight, place = args
        scores = index_scores(Index(query, weight, index.key))
        return divergence(block_mass(q, k, place, 1), scores, place, config).swapaxes(1, 2)

    total = map_query_chunks(chunk, (q, index.query, index.weight, place), _rows(q, index)).sum()
    return total / (jnp.maximum(place.exists.sum(), 1) * k.shape[2])


def choose_tokens(index: Index, place: QueryPlace, config: SelectionConfig) -> Selection:
    """The `num_blocks` candidates of highest score, [B, T, K, M] ascending, then -1; no gradient."""
    index = jax.lax.stop_gradient(index)

    def chunk(args):
        query, weight, place = args
        return choose_blocks(index_scores(Index(query, weight, index.key)), place, config).swapaxes(1, 2)

    return map_query_chunks(chunk, (index.query, index.weight, place), _rows(index.query, index))


def index_scores(index: Index) -> jax.Array:
    """Scores of every token: float32 [B, K, T, S]."""
    precision = matmul_precision(index.key.dtype)
    products = jnp.einsum("btkir,bskr->bktis", index.query, index.key, precision=precision,
                          preferred_element_type=jnp.float32) * index.key.shape[-1] ** -0.5
    weight = index.weight.astype(jnp.float32)
    return jnp.einsum("bktis,btki->bkts", jax.nn.relu(products), weight, precision=jax.lax.Precision.HIGHEST)


def _rows(q, index: Index) -> int:
    return chunk_rows(q.shape[0] * max(q.shape[2], index.query.shape[2] * index.query.shape[3]) * index.key.shape[1])


def _place(q, k, v, index, config, q_offset, kv_length, segment_ids):
    checks.check_attention_arrays(q, k, v)
    if config.block_size != 1:
        raise ValueError(f"config.block_size must be 1: tokens are chosen, got {config.block_size}")
    (batch, queries), (length, kv_heads) = q.shape[:2], k.shape[1:3]
    heads, width = index.query.shape[-2:]
    checks.expect_shape("index.query", index.query, (batch, queries, kv_heads, heads, width), "[B, T, K, I, R]")
    checks.expect_shape("index.weight", index.weight, (batch, queries, kv_heads, heads), "[B, T, K, I]")
    checks.expect_shape("index.key", index.key, (batch, length, kv_heads, width), "[B, S, K, R]")
    place, present = checks.locate(q, k, q_offset, kv_length, segment_ids, 1)
    clear = lambda x: clear_padding_rows(x, place)
    query = jnp.where(place.exists[..., None, None, None], index.query, 0)
    index = Index(query, clear(index.weight), clear_absent_keys(index.key, present))
    return clear(q), clear_absent_keys(k, present), clear_absent_keys(v, present), index, place
