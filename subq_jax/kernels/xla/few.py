"""The choice of a few queries, without a sort: for accelerators, which start a program more slowly than they run it."""

import jax
import jax.numpy as jnp

from subq_jax.axes import Scores
from subq_jax.selection.choose import group_size, masked_scores, split_groups
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace, is_candidate

PAIRS_AT_ONCE = 1 << 23  # of numbers: a GPU compares them faster than it starts the programs that groups take


def best_first(scores: Scores, place: QueryPlace, config: SelectionConfig):
    """`choose_blocks` for a few queries, in the order of their scores.

    A decoding step consists of programs that take longer to start than to run, and of all of them a sort takes longest.
    It takes less to compare every two numbers, which is why the members of the best groups are found by groups too.

    Returns:
      ids int32 [B, K, T, M], best first, then -1, and their scores, float32, whatever stands at -1.
    """
    width, count = scores.shape[-1], min(config.num_blocks, scores.shape[-1])
    iota = lambda shape: jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    ranks = masked_scores(is_candidate(iota((1, 1, width)), place, config)[:, None], scores)
    ranks, ids = jnp.where(jnp.isnan(ranks), jnp.inf, ranks), iota(scores.shape)  # what is no number comes first too
    if (size := _size_compared(scores.size // width, width, count)) > 1:
        groups = split_groups(ranks, size)
        kept = top_by_counting(groups.max(axis=-1), iota(groups.shape[:-1]), count)[0][..., None]
        ranks = jnp.take_along_axis(groups, kept, axis=-2).reshape(*ranks.shape[:-1], -1)
        ids = (kept * size + iota((*kept.shape[:-1], size))).reshape(ranks.shape)
        ranks, ids = jax.lax.optimization_barrier((ranks, ids))  # gathered once, not for every comparison
    ids, ranks = top_by_counting(ranks, ids, count)
    pad = [(0, 0)] * (scores.ndim - 1) + [(0, config.num_blocks - count)]
    return jnp.pad(jnp.where(ranks > -jnp.inf, ids, -1), pad, constant_values=-1), jnp.pad(ranks, pad)


def pairs_compared(rows: int, width: int, count: int) -> int:
    """Comparisons of `best_first` for so many queries and KV heads, the best `count` of `width` blocks each."""
    count = min(count, width)
    size = _size_compared(rows, width, count)
    return rows * ((-(-width // size)) ** 2 + (count * size) ** 2 if size > 1 else width**2)


def _size_compared(rows: int, width: int, count: int) -> int:
    """Members of a group of `best_first`, 1 where every two blocks are compared."""
    return group_size(width, count) if rows * width**2 > PAIRS_AT_ONCE else 1


def top_by_counting(ranks, ids, count: int):
    """The `count` largest of ranks [..., n] in their order (ties: lower id): their ids and ranks [..., count].

    Enumeration sort: the place of a number is how many come before it. Each sum runs over comparisons as they are made,
    n x n are never stored; that is also why those by rank and by id are added, for booleans would be cheap enough to
    store.
    """
    one, other = (lambda x: x[..., None]), (lambda x: x[..., None, :])
    better = (other(ranks) > one(ranks)).astype(jnp.int32)
    earlier = ((other(ranks) == one(ranks)) & (other(ids) < one(ids))).astype(jnp.int32)
    place = (better + earlier).sum(axis=-1)
    mine = other(place) == jax.lax.broadcasted_iota(jnp.int32, (*place.shape[:-1], count, 1), place.ndim - 1)
    return jnp.where(mine, other(ids), -1).max(axis=-1), jnp.where(mine, other(ranks), -jnp.inf).max(axis=-1)
