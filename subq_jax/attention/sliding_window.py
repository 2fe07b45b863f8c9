"""Attention to the most recent positions only: the arm that forgets, and the model's local layers."""

import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, SegmentIds, Values
from subq_jax.checks import check_integer
from subq_jax.kernels.xla.banded import banded_attention
from subq_jax.kernels.xla.layout import fold_keys, fold_queries, repeat_heads, unfold_queries, vary_alike
from subq_jax.selection.visibility import clear_absent_keys, clear_padding_rows, nothing_for_padding


def sliding_window_attention(
    q: Queries,
    k: Keys,
    v: Values,
    window: int,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    first_key: int | PerSequence = 0,
) -> Outputs:
    """Exact attention of every query to the `window` most recent positions of its document, itself included.

    Args:
      q: queries [B, T, N, H].
      k: keys [B, S, K, H].
      v: values [B, S, K, H].
      window: visible positions, >= 1.
      q_offset: position of the first query, int or int32 [B]; default `kv_length - T`.
      kv_length: number of keys that exist, int or int32 [B]; default S.
      segment_ids: int [B, S], packed documents; rows with a negative id output 0.
      first_key: keys before this position do not exist, int or int32 [B] (the unfilled part of a rolling cache).

    Returns:
      the output [B, T, N, H] in `q`'s dtype.

    Raises:
      TypeError, ValueError: for arguments that do not fit together, naming the argument.
    """
    checks.check_attention_arrays(q, k, v)
    check_integer("window", window, 1)
    place, present = checks.locate(q, k, q_offset, kv_length, segment_ids, block_size=1)
    batch, (length, kv_heads) = q.shape[0], k.shape[1:3]
    window = min(window, length)  # work and memory grow with the window
    first_key = checks.per_sequence("first_key", first_key, batch)[:, None]
    lower = jnp.maximum(jnp.maximum(place.first_position, first_key), place.position - window + 1)
    lower, position = (repeat_heads(x, kv_heads) for x in (nothing_for_padding(lower, place), place.position))
    q, k, v = clear_padding_rows(q, place), clear_absent_keys(k, present), clear_absent_keys(v, present)
    rows = vary_alike((fold_queries(q, kv_heads), fold_keys(k), fold_keys(v), lower, position))
    return unfold_queries(banded_attention(window - 1, *rows), batch)
