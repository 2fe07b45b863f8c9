"""The choice itself: scores of blocks, and the best of the candidates."""

import math

import jax
import jax.numpy as jnp

from subq_jax.axes import ChosenBlocks, ListedBlocks, ListedScores, RouterQueries, Scores, Summaries
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import score_scale
from subq_jax.selection.visibility import QueryPlace, is_candidate

MIN_GROUP = 8  # smaller groups leave as much to compare as there was


def matmul_precision(dtype) -> jax.lax.Precision | None:
    """Full precision for float32 inputs, so that an accelerator's matrix units do not round them to bf16 or tf32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def block_scores(router_q: RouterQueries, summaries: Summaries) -> Scores:
    """`router_q . summary / sqrt(R)` of every query and block, accumulated in float32: [B, K, T, NB]."""
    return _scaled_products("btkr,bknr->bktn", router_q, summaries)


def scores_of(router_q: RouterQueries, summaries: Summaries, ids: ListedBlocks) -> ListedScores:
    """The scores [B, K, T, J] of the listed blocks [B, K, T, J] alone; out-of-range ids score as the nearest block."""
    listed = jax.vmap(jax.vmap(lambda table, ids: jnp.take(table, ids, axis=0, mode="clip")))(summaries, ids)
    return _scaled_products("btkr,bktjr->bktj", router_q, listed)


def _scaled_products(pattern: str, router_q, summaries) -> Scores:
    dtype = jnp.promote_types(router_q.dtype, summaries.dtype)
    scores = jnp.einsum(
        pattern,
        router_q.astype(dtype),
        summaries.astype(dtype),
        precision=matmul_precision(dtype),
        preferred_element_type=jnp.float32,
    )
    return scores * score_scale(router_q.shape[-1])


def masked_scores(allowed, scores: Scores) -> Scores:
    """Scores to sort by: -inf for what is not `allowed`, and above it every score that is, even one that overflowed.

    Zeros of both signs are equal, which `jax.lax.top_k` would tell apart.
    """
    scores = jnp.where(scores == 0, 0.0, jnp.maximum(scores, jnp.finfo(jnp.float32).min))
    return jnp.where(allowed, scores, -jnp.inf)


def choose_blocks(scores: Scores, place: QueryPlace, config: SelectionConfig, reached=None) -> ChosenBlocks:
    """The `num_blocks` candidates of highest score, ties to the lower index.

    Args:
      scores: float32 [B, K, T, NB].
      place: where the queries stand.
      config: how many to choose.
      reached: bool [B, K, T, NB], the blocks that a tree search came to; default all.

    Returns:
      int32 [B, K, T, M]: block ids ascending, then -1 where a query has fewer candidates.
    """
    num_blocks = scores.shape[-1]
    block = jnp.arange(num_blocks, dtype=jnp.int32)[None, None]
    candidate = is_candidate(block, place, config)[:, None]
    candidate = candidate if reached is None else candidate & reached
    if config.num_blocks >= num_blocks:  # the dense warm-up: every candidate is chosen
        every = jnp.where(candidate, block[None], num_blocks)
        return ascending(jnp.broadcast_to(every, scores.shape), num_blocks, config.num_blocks)
    best = best_of(masked_scores(candidate, scores), config.num_blocks)
    chosen = jnp.take_along_axis(jnp.broadcast_to(candidate, scores.shape), best, axis=-1)
    return ascending(jnp.where(chosen, best, num_blocks), num_blocks, config.num_blocks)


def best_of(ranks, count: int):
    """Indices of the `count` largest of ranks [..., n] (ties: lower index), int32 [..., count]; as `jax.lax.top_k`.

    The largest lie in the `count` groups of largest maximum, so that only their members are compared one by one: for
    the best 29 of 16,384 that is 11 times fewer. Groups keep their order, and with it the order of ties. Every kept
    group has a member of its own, so what fills up the last group is never needed.
    """
    size = group_size(ranks.shape[-1], count)
    if size < MIN_GROUP:
        return jax.lax.top_k(ranks, count)[1]
    groups = split_groups(ranks, size)
    kept = jnp.sort(jax.lax.top_k(groups.max(axis=-1), count)[1], axis=-1)
    members = jnp.take_along_axis(groups, kept[..., None], axis=-2).reshape(*ranks.shape[:-1], -1)
    place = jax.lax.top_k(members, count)[1]
    return jnp.take_along_axis(kept, place // size, axis=-1) * size + place % size


def group_size(width: int, count: int) -> int:
    """How many neighbours to compare by their maximum first, a power of 2."""
    return 1 << (math.isqrt(width // count).bit_length() - 1)


def split_groups(ranks, size: int):
    """[..., n] -> [..., groups, size]; -inf fills up the last group."""
    ranks = jnp.pad(ranks, [(0, 0)] * (ranks.ndim - 1) + [(0, -ranks.shape[-1] % size)], constant_values=-jnp.inf)
    return ranks.reshape(*ranks.shape[:-1], -1, size)


def as_block_ids(selection) -> ChosenBlocks:
    """A selection of any integer type as int32, -1 in place of ids that would wrap around."""
    ids = selection.astype(jnp.int32)
    if jnp.iinfo(selection.dtype).max <= jnp.iinfo(jnp.int32).max:
        return ids
    return jnp.where((ids >= 0) & (ids.astype(selection.dtype) == selection), ids, -1)


def admit_selection(
    selection: ChosenBlocks, place: QueryPlace, config: SelectionConfig, num_blocks: int
) -> ChosenBlocks:
    """A selection given from outside, cleaned: ids that are not candidates of their query, and repeats, become -1.

    Takes and returns int32 [B, K, T, M]; so a foreign selection can neither leak the future nor count a block twice.
    """
    allowed = jax.vmap(lambda ids: is_candidate(ids, place, config), in_axes=1, out_axes=1)(selection)
    ids = jnp.sort(jnp.where(allowed, selection, num_blocks), axis=-1)
    repeat = jnp.concatenate([jnp.zeros_like(ids[..., :1], dtype=bool), ids[..., 1:] == ids[..., :-1]], axis=-1)
    return ascending(jnp.where(repeat, num_blocks, ids), num_blocks, config.num_blocks)


def ascending(ids, none: int, width: int) -> ChosenBlocks:
    """Sorts ids, marks `none` as -1 at the end, and pads the last axis to `width`."""
    ids = jnp.sort(ids.astype(jnp.int32), axis=-1)
    ids = jnp.where(ids == none, -1, ids)
    pad = [(0, 0)] * (ids.ndim - 1) + [(0, width - ids.shape[-1])]
    return jnp.pad(ids, pad, constant_values=-1)


def in_order(chosen: ChosenBlocks) -> ChosenBlocks:
    """Ids in any order, -1 among them -> ascending, then -1."""
    none = jnp.iinfo(jnp.int32).max
    return ascending(jnp.where(chosen < 0, none, chosen), none, chosen.shape[-1])
