"""Which blocks a query sees: its document's sink, its local blocks, and the candidates it may select from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import PerSequence, SegmentIds
from subq_jax.selection.config import SelectionConfig


class QueryPlace(NamedTuple):
    """Where query rows stand; each field is [B, T].

    `position` counts tokens from the first key, `block` is the position's block; `first_position` and `first_block`
    are where the query's document starts; `exists` is False for padding rows, which see nothing.
    """

    position: jax.Array
    block: jax.Array
    first_position: jax.Array
    first_block: jax.Array
    exists: jax.Array


def place_queries(
    q_offset: PerSequence, num_queries: int, segment_ids: SegmentIds | None, block_size: int
) -> QueryPlace:
    """Places `num_queries` consecutive query rows that start at `q_offset` [B]."""
    position = q_offset[:, None] + jnp.arange(num_queries, dtype=jnp.int32)[None]
    if segment_ids is None:
        first, exists = jnp.zeros_like(position), jnp.ones_like(position, dtype=bool)
    else:
        at_query = lambda x: jnp.take_along_axis(x, position, axis=1, mode="clip")
        first, exists = at_query(document_starts(segment_ids)), at_query(segment_ids) >= 0
    return QueryPlace(position, position // block_size, first, first // block_size, exists)


def document_starts(segment_ids: SegmentIds) -> SegmentIds:
    """Position at which the document of each token starts: int32 [B, S]."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    index = jnp.arange(1, segment_ids.shape[1], dtype=jnp.int32)[None]
    starts = jnp.where(changes, index, 0)
    return jnp.pad(jax.lax.cummax(starts, axis=1), ((0, 0), (1, 0)))


def is_sink(block, place: QueryPlace, config: SelectionConfig):
    """Whether key `block` (broadcast against `[B, T, 1]`) is one of the query's sink blocks."""
    first = place.first_block[..., None]
    return (block >= first) & (block < first + config.sink_blocks)


def is_local(block, place: QueryPlace, config: SelectionConfig):
    """Whether key `block` is the query's own block or one of those right before it, in its document."""
    own = place.block[..., None]
    return (block >= place.first_block[..., None]) & (block <= own) & (block > own - config.local_blocks)


def sink_ids(place: QueryPlace, config: SelectionConfig):
    """Sink blocks that are not local too: int32 [B, T, sink_blocks], -1 for none."""
    sinks = place.first_block[..., None] + jnp.arange(config.sink_blocks, dtype=jnp.int32)[None, None]
    apart = (sinks <= place.block[..., None] - config.local_blocks) & place.exists[..., None]
    return jnp.where(apart, sinks, -1)


def local_ids(place: QueryPlace, config: SelectionConfig):
    """Local blocks of every query, its own first: int32 [B, T, local_blocks], -1 for none."""
    local = place.block[..., None] - jnp.arange(config.local_blocks, dtype=jnp.int32)[None, None]
    return jnp.where((local >= place.first_block[..., None]) & place.exists[..., None], local, -1)


def candidate_range(place: QueryPlace, config: SelectionConfig):
    """First and last candidate block of every query, [B, T, 1] each; the last lies before the first where none is."""
    first = place.first_block[..., None] + config.sink_blocks
    last = place.block[..., None] - config.local_blocks
    return first, jnp.where(place.exists[..., None], last, first - 1)


def is_candidate(block, place: QueryPlace, config: SelectionConfig):
    """Whether key `block` may be selected: complete, past, and neither sink nor local."""
    first, last = candidate_range(place, config)
    return (block >= first) & (block <= last)


def clear_padding_rows(x, place: QueryPlace):
    """Zeros [B, T, ., .] where the query row is padding, so that nothing stored there reaches a gradient."""
    return jnp.where(place.exists[..., None, None], x, 0)


def nothing_for_padding(lower, place: QueryPlace):
    """First visible positions [B, T], moved behind the row's own position where it is padding and sees nothing."""
    return jnp.where(place.exists, lower, place.position + 1)


def present_keys(kv_length: PerSequence, length: int, segment_ids: SegmentIds | None):
    """Which of `length` positions hold a key, bool [B, S]: those before `kv_length` that are not padding."""
    present = jnp.arange(length)[None] < kv_length[:, None]
    return present if segment_ids is None else present & (segment_ids >= 0)


def clear_absent_keys(x, present):
    """Zeros at positions of axis 1 that are not `present` [B, S], so that nothing stored there can be read."""
    return jnp.where(present[..., None, None], x, 0)
