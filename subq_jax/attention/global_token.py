"""A window and a constant number of global slots: the arm that summarises what it cannot keep."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, SegmentIds, Values
from subq_jax.checks import check_integer
from subq_jax.kernels.xla.layout import fold_keys, fold_queries, repeat_heads, unfold_queries, vary_alike
from subq_jax.kernels.xla.slots import Bounds, Sizes, slot_attention
from subq_jax.selection.summaries import num_key_blocks, split_blocks
from subq_jax.selection.visibility import clear_absent_keys, clear_padding_rows, document_starts, nothing_for_padding


class Slots(NamedTuple):
    """The summary of every block, as a key and a value: [B, NB, K, H] each."""

    key: jax.Array
    value: jax.Array


def global_token_attention(
    q: Queries,
    k: Keys,
    v: Values,
    slot_query: jax.Array,
    window: int,
    block_size: int,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    slots: Slots | None = None,
) -> Outputs:
    """Exact attention to the `window` most recent positions and to n slots, summaries of the blocks before.

    The summary of a complete block is attention of a learned query over the block's tokens and over the n summaries
    before it: the keys and the values that it attends to, averaged by its weights. Block b of a document writes slot
    b mod n, so slots are constant in number, and what an overwritten slot held lives on in those that attended to it.
    A query sees the slots as they were when its own block began.

    Args:
      q: queries [B, T, N, H].
      k: keys [B, S, K, H].
      v: values [B, S, K, H].
      slot_query: learned queries of the n slots [n, K, H].
      window: positions seen token by token, >= 1.
      block_size: tokens of a block.
      q_offset: position of the first query, int or int32 [B]; default `kv_length - T`.
      kv_length: number of keys that exist, int or int32 [B]; default S.
      segment_ids: int [B, S], packed documents, each starting at a block boundary; rows with a negative id output 0.
      slots: summaries from `block_slots` and `update_slots`; default those of `k` and `v`.

    Returns:
      the output [B, T, N, H] in `q`'s dtype.

    Raises:
      TypeError, ValueError: for arguments that do not fit together, naming the argument.

    Source: global tokens as in ETC (arXiv 2004.08483), made causal; recurrence over summaries as in the Recurrent
    Memory Transformer (arXiv 2207.06881).
    """
    checks.check_attention_arrays(q, k, v)
    check_integer("window", window, 1)
    check_integer("block_size", block_size, 1)
    place, present = checks.locate(q, k, q_offset, kv_length, segment_ids, block_size)
    batch, (length, kv_heads) = q.shape[0], k.shape[1:3]
    _check_slot_query(slot_query, kv_heads, k.shape[3])
    q, k, v = clear_padding_rows(q, place), clear_absent_keys(k, present), clear_absent_keys(v, present)
    if slots is None:
        slots = _summarise(_blocks(k, v, present, segment_ids, block_size), slot_query, None, 0, None)
    window = min(window, length)
    lower = nothing_for_padding(jnp.maximum(place.first_position, place.position - window + 1), place)
    bounds = Bounds(*(repeat_heads(x, kv_heads) for x in (lower, place.position, place.first_block, place.exists)))
    sizes = Sizes(window, min(slot_query.shape[0], slots.key.shape[1]), block_size)
    arrays = (fold_queries(q, kv_heads), *(fold_keys(x) for x in (k, v, *slots)))
    return unfold_queries(slot_attention(sizes, *vary_alike((*arrays, bounds))), batch)


def block_slots(k: Keys, v: Values, slot_query: jax.Array, block_size: int) -> Slots:
    """The summaries of all blocks of k and v [B, S, K, H], one document a sequence."""
    present = jnp.ones(k.shape[:2], bool)
    return _summarise(_blocks(k, v, present, None, block_size), slot_query, None, 0, None)


def update_slots(
    slots: Slots, k: Keys, v: Values, slot_query: jax.Array, block_size: int, start: int | jax.Array, count: int
) -> Slots:
    """The summaries after `count` tokens (static) from position `start` on were written into k and v [B, S, K, H].

    The blocks written to are summarised anew, from the earlier summaries; later ones are left as they are.
    """
    present = jnp.broadcast_to((jnp.arange(k.shape[1]) < start + count)[None], k.shape[:2])
    clear = lambda x: clear_absent_keys(x, present)
    written = min(slots.key.shape[1], num_key_blocks(count, block_size) + 1)
    return _summarise(
        _blocks(clear(k), clear(v), present, None, block_size), slot_query, slots, start // block_size, written)


class _Blocks(NamedTuple):
    """Keys and values [B, K, NB, c, H], which of their tokens exist [B, NB, c], and the first block of each one's
    document [B, NB]."""

    key: jax.Array
    value: jax.Array
    present: jax.Array
    first: jax.Array


def _blocks(k, v, present, segment_ids, size: int) -> _Blocks:
    batch, length = present.shape
    blocks = num_key_blocks(length, size)
    if segment_ids is None:
        first = jnp.zeros((batch, blocks), jnp.int32)
    else:
        first = document_starts(segment_ids)[:, ::size] // size
    present = jnp.pad(present, ((0, 0), (0, blocks * size - length))).reshape(batch, blocks, size)
    return _Blocks(split_blocks(k, size), split_blocks(v, size), present, first)


def _summarise(blocks: _Blocks, slot_query, slots: Slots | None, start, count: int | None) -> Slots:
    """`slots`, with `count` summaries from block `start` on computed anew; all of them where `slots` is None."""
    batch, kv_heads, total, _, head_dim = blocks.key.shape
    num_slots = slot_query.shape[0]
    blocks, slot_query, slots = vary_alike((blocks, slot_query, slots))
    if slots is None:
        empty = jnp.zeros_like(blocks.key, shape=(batch, total, kv_heads, head_dim))
        slots, start, count = Slots(empty, empty), 0, total
    start = jnp.minimum(start, total - count)
    # Before the first block stand as many empty summaries as there are slots; the scan shifts the latest ones along.
    recent = tuple(jax.lax.dynamic_slice_in_dim(
        jnp.pad(x.astype(jnp.float32).swapaxes(1, 2), ((0, 0), (0, 0), (num_slots, 0), (0, 0))), start, num_slots, 2)
        for x in slots)
    take = lambda x, axis: jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, start, count, axis), axis, 0)
    steps = (take(blocks.key, 2), take(blocks.value, 2), take(blocks.present, 1), take(blocks.first, 1),
             start + jnp.arange(count, dtype=jnp.int32))

    def step(recent, block):
        keys, values, present, first, index = block
        slot = jax.nn.one_hot((index - first) % num_slots, num_slots)  # a gather's gradient would be a scatter
        query = jnp.einsum("bs,skh->bkh", slot, slot_query.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        keys, values = (jnp.concatenate([old, new.astype(jnp.float32)], axis=2)
                        for old, new in zip(recent, (keys, values), strict=True))
        earlier = index - num_slots + jnp.arange(num_slots, dtype=jnp.int32)
        seen = jnp.concatenate([earlier[None] >= first[:, None], present], axis=1)[:, None]
        logits = jnp.einsum("bkh,bknh->bkn", query, keys, precision=jax.lax.Precision.HIGHEST) / math.sqrt(head_dim)
        weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, logits, -1e30), axis=-1), 0.0)
        summary = tuple(jnp.einsum("bkn,bknh->bkh", weights, x, precision=jax.lax.Precision.HIGHEST)
                        for x in (keys, values))
        recent = tuple(jnp.concatenate([old[:, :, 1:], new[:, :, None]], axis=2)
                       for old, new in zip(recent, summary, strict=True))
        return recent, summary

    _, new = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), recent, steps)
    return Slots(*(jax.lax.dynamic_update_slice_in_dim(old, jnp.moveaxis(x, 0, 1).astype(old.dtype), start, 1)
                   for old, x in zip(slots, new, strict=True)))


def _check_slot_query(slot_query, kv_heads: int, head_dim: int) -> None:
    if slot_query.ndim != 3 or slot_query.shape[1:] != (kv_heads, head_dim) or not slot_query.shape[0]:
        raise ValueError(
            f"slot_query must have shape [n, K, H] = (n, {kv_heads}, {head_dim}), n >= 1, got {slot_query.shape}")
