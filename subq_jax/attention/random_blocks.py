"""Blocks chosen by lot: the control that shows how much of a result any choice would reach."""

import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.attention.api import chosen_attention
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, SegmentIds, Selection, Values
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace, candidate_range


def random_blocks_attention(
    q: Queries,
    k: Keys,
    v: Values,
    config: SelectionConfig,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    return_selection: bool = False,
) -> Outputs | tuple[Outputs, Selection]:
    """Exact attention over sink and local blocks, and over past blocks that a hash chooses.

    As `selective_attention` without a gate, but the choice looks at no content: it is a function of the query's
    position in its document and of its KV head, so that prefill and decode agree. Arguments and errors as there.
    """
    checks.check_attention_arrays(q, k, v)
    place, _ = checks.locate(q, k, q_offset, kv_length, segment_ids, config.block_size)
    selection = random_selection(place, config, k.shape[2])
    return chosen_attention(selection, q, k, v, config, q_offset, kv_length, segment_ids, return_selection)


def random_selection(place: QueryPlace, config: SelectionConfig, kv_heads: int) -> Selection:
    """One block from each of `num_blocks` equal strata of a query's candidates; all when there are no more."""
    first, last = candidate_range(place, config)
    count = jnp.maximum(last - first + 1, 0)[..., None]  # [B, T, 1, 1]
    slot = jnp.arange(config.num_blocks, dtype=jnp.int32)[None, None, None]
    slots = jnp.maximum(jnp.minimum(count, config.num_blocks), 1)
    begin, end = (count // slots * s + count % slots * s // slots for s in (slot, slot + 1))
    position = (place.position - place.first_position)[..., None, None]
    head = jnp.arange(kv_heads, dtype=jnp.int32)[None, None, :, None]
    drawn = begin + (_hash(position, head, slot) % jnp.maximum(end - begin, 1).astype(jnp.uint32)).astype(jnp.int32)
    return jnp.where(slot < count, first[..., None] + drawn, -1)


def _hash(*parts):
    """uint32 that every part changes: rounds of Murmur3's finaliser."""
    mixed = jnp.uint32(0)
    for part in parts:
        mixed = (mixed ^ part.astype(jnp.uint32)) + jnp.uint32(0x9E3779B9)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
        mixed ^= mixed >> 16
    return mixed
