"""Which blocks a query sees: its document's sink, its local blocks, and the candidates it may select from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import PerSequence, SegmentIds
from subq_jax.selection.config import SelectionConfig


class QueryPlace(NamedTuple):
    """Where query rows stand; each field is [B, T].

    `position` counts tokens from the first key; `block` is the position's block; `first_block` is where the query's
    document starts; `exists` is False for padding rows, which see nothing.
    """

    position: jax.Array
    block: jax.Array
    first_block: jax.Array
    exists: jax.Array


def place_queries(
    q_offset: PerSequence, num_queries: int, segment_ids: SegmentIds | None, block_size: int
) -> QueryPlace:
    """Places `num_queries` consecutive query rows that start at `q_offset` [B]."""
    position = q_offset[:, None] + jnp.arange(num_queries, dtype=jnp.int32)
    block = position // block_size
    if segment_ids is None:
        return QueryPlace(position, block, jnp.zeros_like(block), jnp.ones_like(block, dtype=bool))
    exists = jnp.take_along_axis(segment_ids, position, axis=1, mode="clip") >= 0
    return QueryPlace(position, block, _document_starts(segment_ids, block_size, block), exists)


def _document_starts(segment_ids, block_size, block):
    """The block in which the document of each query block starts; documents start at block boundaries."""
    first = segment_ids[:, ::block_size]
    before = segment_ids[:, block_size - 1 :: block_size][:, : first.shape[1] - 1]
    starts = jnp.concatenate([jnp.ones_like(first[:, :1], dtype=bool), first[:, 1:] != before], axis=1)
    index = jnp.arange(first.shape[1], dtype=jnp.int32)
    start_of_block = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    return jnp.take_along_axis(start_of_block, block, axis=1, mode="clip")


def is_sink(block, place: QueryPlace, config: SelectionConfig):
    """Whether key `block` (broadcast against `[B, T, 1]`) is one of the query's sink blocks."""
    first = place.first_block[..., None]
    return (block >= first) & (block < first + config.sink_blocks)


def is_local(block, place: QueryPlace, config: SelectionConfig):
    """Whether key `block` is the query's own block or one of those right before it, in its document."""
    own = place.block[..., None]
    return (block >= place.first_block[..., None]) & (block <= own) & (block > own - config.local_blocks)


def is_candidate(block, place: QueryPlace, config: SelectionConfig):
    """Whether key `block` may be selected: complete, past, and neither sink nor local."""
    first = place.first_block[..., None] + config.sink_blocks
    last = place.block[..., None] - config.local_blocks
    return (block >= first) & (block <= last) & place.exists[..., None]
