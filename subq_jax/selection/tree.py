"""The tree over block summaries: choosing without looking at every block.

    level 2           [        64 * 64 blocks        ] ...      node n of level l covers the blocks
    level 1    [   64 blocks   ] [   64 blocks   ]     ...      n * span .. (n + 1) * span - 1
    level 0    [b][b][b][b] ...                        ...      span = fanouts[0] * ... * fanouts[l - 1]

A query's candidates are one run of blocks. A node that is wholly inside the run is *full*: it is scored, and only the
`beam_width` best of a level are expanded. A node that is cut by an end of the run is *partial*: its summary covers
blocks that the query may not see, so it is never scored, always expanded, and there are at most two of them a level.

With max pooling and a router query that is non-negative wherever router keys vary, a node scores at least as high as
every block below it. The choice is then *certified* to be the flat one when its worst block beats every pruned node.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import ChosenBlocks, ListedScores, PerSequence, RouterKeys, RouterQueries, Summaries
from subq_jax.selection.choose import block_scores, masked_scores, scores_of
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import block_summaries, num_key_blocks, pool
from subq_jax.selection.visibility import QueryPlace, candidate_range


class SummaryTree(NamedTuple):
    """Summaries [B, K, nodes, R] of every level, the blocks first. A partly filled last node may hold anything."""

    levels: tuple[Summaries, ...]


class TreeChoice(NamedTuple):
    """What a search found: block ids [B, K, T, M] ascending, then -1; their scores, J = M; bool [B, K, T]."""

    chosen: ChosenBlocks
    scores: ListedScores
    certified: jax.Array


def span(config: SelectionConfig, level: int) -> int:
    """Blocks below a node of `level`."""
    return math.prod(config.fanouts[:level])


def build_tree(router_k: RouterKeys, config: SelectionConfig) -> SummaryTree:
    """Summaries of all blocks of router_k [B, S, K, R] and of all nodes above them.

    Every level reduces its children in float32 and rounds to `router_k`'s dtype. Differentiable at level 0.
    """
    return tree_above(block_summaries(router_k, config.block_size, config.pooling), config)


def tree_above(summaries: Summaries, config: SelectionConfig) -> SummaryTree:
    """The tree whose lowest level is `summaries` [B, K, NB, R]."""
    levels = [summaries]
    for fanout in config.fanouts:
        levels.append(block_summaries(levels[-1].swapaxes(1, 2), fanout, config.pooling))
    return SummaryTree(tuple(levels))


def update_tree(
    tree: SummaryTree, router_k: RouterKeys, config: SelectionConfig, start: int | PerSequence, count: int
) -> SummaryTree:
    """The tree after `count` tokens from position `start` on were written into the cache router_k [B, S, K, R].

    Every node above a written token is computed anew from its children, so it does not matter what stood there
    before: write over rolled-back tokens, then call this for the tokens written.

    Args:
      tree: the tree before.
      router_k: all router keys, the written ones included.
      config: as in `build_tree`.
      start: first written position, int or int32 [B]; `start + count <= S`.
      count: number of written tokens, static.
    """
    start = jnp.asarray(start, jnp.int32)
    start = start.reshape(()) if start.size == 1 else start
    children, fanout, levels = router_k.swapaxes(1, 2), config.block_size, []
    for level, old in enumerate(tree.levels):
        start, count = start // fanout, min(old.shape[2], num_key_blocks(count - 1, fanout) + 1)
        start = jnp.minimum(start, old.shape[2] - count)
        renew = functools.partial(_renew, count=count, fanout=fanout, pooling=config.pooling)
        renew = jax.vmap(renew) if start.ndim else renew  # one start for all needs neither gather nor scatter
        levels.append(renew(old, children, start))
        children = levels[-1]
        fanout = config.fanouts[level] if level < len(config.fanouts) else 0
    return SummaryTree(tuple(levels))


def _renew(old, children, start, *, count, fanout, pooling):
    """`old` [..., nodes, R] with `count` nodes from `start` on pooled from `children` [..., n, R]."""
    if children.shape[-2] == old.shape[-2] * fanout:
        below = jax.lax.dynamic_slice_in_dim(children, start * fanout, count * fanout, axis=-2)
    else:  # of a partial last node; padding would copy all children
        child = start * fanout + jnp.arange(count * fanout, dtype=jnp.int32)
        below = jnp.take(children, child, axis=-2, mode="fill", fill_value=0)
    new = pool(below.reshape(*below.shape[:-2], count, fanout, below.shape[-1]), pooling)
    return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=-2)


def clear_incomplete_nodes(tree: SummaryTree, kv_length: PerSequence, config: SelectionConfig) -> SummaryTree:
    """Zeros at nodes that cover positions at or beyond `kv_length` [B], so that nothing stored there can be read."""
    levels = []
    for level, summaries in enumerate(tree.levels):
        end = (jnp.arange(summaries.shape[2], dtype=jnp.int32) + 1) * (span(config, level) * config.block_size)
        complete = end[None] <= kv_length[:, None]
        levels.append(jnp.where(complete[:, None, :, None], summaries, 0))
    return SummaryTree(tuple(levels))


def is_full(node, level: int, place: QueryPlace, config: SelectionConfig):
    """Whether every block below `node` (broadcast against [B, T, 1]) is a candidate of the query."""
    low, high = candidate_range(place, config)
    size = span(config, level)
    return (node * size >= low) & ((node + 1) * size - 1 <= high)


def is_partial(node, level: int, place: QueryPlace, config: SelectionConfig):
    """Whether some blocks below `node` (broadcast against [B, T, 1]) are candidates of the query, but not all."""
    low, high = candidate_range(place, config)
    size = span(config, level)
    overlaps = (node * size <= high) & ((node + 1) * size - 1 >= low) & (low <= high)
    return overlaps & ~is_full(node, level, place, config)


def search_tree(
    router_q: RouterQueries, tree: SummaryTree, place: QueryPlace, config: SelectionConfig
) -> TreeChoice:
    """Chooses blocks for router_q [B, T, K, R] from the top of the tree down; no gradient, no T x S/c array.

    `certified` is True where the choice is sure to be that of flat selection: nothing was pruned, or, with max
    pooling, the worst chosen block beats every pruned node by more than 1e-5 * max(1, |score|). The latter trusts the
    caller that `router_q` is non-negative in every channel in which router keys vary.
    """
    router_q, tree = jax.lax.stop_gradient((router_q, tree))
    batch, queries, heads, _ = router_q.shape
    top = tree.levels[-1].shape[2]
    node = jnp.broadcast_to(jnp.arange(top, dtype=jnp.int32), (batch, heads, queries, top))
    scores = block_scores(router_q, tree.levels[-1])
    pruned = jnp.full((batch, heads, queries), -jnp.inf)
    for level in range(len(config.fanouts), 0, -1):
        kept, cut = _keep_best(node, scores, level, place, config)
        pruned = jnp.maximum(pruned, cut)
        fanout = config.fanouts[level - 1]
        expanded = jnp.concatenate([kept, _partial_nodes(level, place, config, heads)], axis=-1)
        expanded = jnp.sort(jnp.where(expanded < 0, top * fanout, expanded), axis=-1)  # ties need ascending ids
        child = jax.lax.broadcasted_iota(jnp.int32, (*expanded.shape, fanout), expanded.ndim)
        node = (expanded[..., None] * fanout + child).reshape(*expanded.shape[:-1], -1)
        scores, top = scores_of(router_q, tree.levels[level - 1], node), tree.levels[level - 1].shape[2]

    candidate = _per_head(is_full, node, 0, place, config)
    width = min(config.num_blocks, node.shape[-1])
    best_scores, best = jax.lax.top_k(masked_scores(candidate, scores), width)
    real = jnp.take_along_axis(candidate, best, axis=-1)
    ids = jnp.where(real, jnp.take_along_axis(node, best, axis=-1), top)
    ids, found = jax.lax.sort((ids, jnp.where(real, best_scores, 0.0)), num_keys=1)
    pad = [(0, 0)] * 3 + [(0, config.num_blocks - width)]
    chosen = jnp.pad(jnp.where(ids == top, -1, ids), pad, constant_values=-1)
    found = jnp.pad(found, pad)
    worst = jnp.where(real, best_scores, jnp.inf).min(axis=-1)
    certified = pruned == -jnp.inf
    if config.pooling == "max":
        certified |= worst > pruned + 1e-5 * jnp.maximum(1.0, jnp.abs(worst))
    return TreeChoice(chosen, found, certified)


def _keep_best(node, scores, level, place, config):
    """The ids of the best full nodes, -1 where there are fewer, and the best score among the full nodes left out."""
    full = _per_head(is_full, node, level, place, config)
    scores = masked_scores(full, scores)
    width = min(config.beam_width, node.shape[-1])
    more = min(width + 1, node.shape[-1])
    best_scores, best = jax.lax.top_k(scores, more)
    kept = jnp.where(jnp.take_along_axis(full, best, axis=-1), jnp.take_along_axis(node, best, axis=-1), -1)
    cut = best_scores[..., width] if more > width else jnp.full(scores.shape[:-1], -jnp.inf)
    return kept[..., :width], cut


def _partial_nodes(level, place, config, heads):
    """The nodes cut by the ends of the run of candidates, int32 [B, K, T, 2], -1 for none."""
    low, high = candidate_range(place, config)
    ends = jnp.concatenate([low, high], axis=-1) // span(config, level)
    cut = is_partial(ends, level, place, config)
    twice = jnp.stack([jnp.zeros_like(cut[..., 0]), ends[..., 0] == ends[..., 1]], axis=-1)
    ends = jnp.where(cut & ~twice, ends, -1)
    return jnp.broadcast_to(ends[:, None], (ends.shape[0], heads, *ends.shape[1:]))


def _per_head(test, node, level, place, config):
    """A test of nodes [B, T, n] applied to [B, K, T, n]."""
    return jax.vmap(lambda node: test(node, level, place, config), in_axes=1, out_axes=1)(node)
