"""Choosing through a sketch: every block is scored in few channels, and the best of them again in all.

A trained router's queries fill a small part of their space, so that the scores of hundreds of channels are nearly a
product of low rank. The two maps of the sketch lose least of them, in the sense of least squares, over the queries and
summaries that they were fitted to: with query moments `Q = mean q q^T` and the covariance `S` of summaries, they are
`Q^-1/2 V` and `Q^1/2 V`, where `V` are the first eigenvectors of `Q^1/2 S Q^1/2`. Fit them to other sequences than
those that are searched: a map that knew a sequence's end would let it show through in the choice of earlier queries.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.axes import ChosenBlocks, RouterQueries, Summaries
from subq_jax.selection.choose import ascending, block_scores, choose_blocks, masked_scores, scores_of
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace

RIDGE = 1e-4  # of the mean query moment: directions that no fitted query had keep a finite scale
MIN_MOMENT = 1e-20  # mean moment that the ridge counts on: where all fitted queries are zero, scales stay finite


class Sketch(NamedTuple):
    """Maps [K, R, d] of router queries and of summaries to `d` channels whose products are nearly the scores."""

    query: jax.Array
    summary: jax.Array


def fit_sketch(router_q: RouterQueries, summaries: Summaries, rank: int) -> Sketch:
    """The best sketch of `rank` channels for queries [B, T, K, R] and summaries [B, K, NB, R] like these.

    Raises:
      ValueError: unless `rank` is in 1 .. R.
    """
    width = router_q.shape[-1]
    if not 1 <= rank <= width:
        raise ValueError(f"rank must be in [1, {width}], got {rank}")
    queries, blocks = (x.astype(jnp.float32).swapaxes(0, 1).reshape(x.shape[1], -1, width)
                       for x in (router_q.swapaxes(1, 2), summaries))
    moments = jnp.einsum("knr,kns->krs", queries, queries, precision="highest") / queries.shape[1]
    mean = jnp.trace(moments, axis1=1, axis2=2)[:, None, None] / width
    ridge = RIDGE * jnp.maximum(mean, MIN_MOMENT)
    scale, basis = jnp.linalg.eigh(moments + ridge * jnp.eye(width)[None])
    root = jnp.sqrt(jnp.maximum(scale, 0.0))[:, None]
    half, inverse = ((basis * x) @ basis.swapaxes(1, 2) for x in (root, 1.0 / root))
    blocks -= blocks.mean(axis=1, keepdims=True)  # what all blocks share does not change a query's order
    covariance = jnp.einsum("knr,kns->krs", blocks, blocks, precision="highest")
    first = jnp.linalg.eigh(half @ covariance @ half)[1][..., ::-1][..., :rank]
    return Sketch(inverse @ first, half @ first)


def search_sketch(router_q: RouterQueries, summaries: Summaries, sketch: Sketch, place: QueryPlace,
                  config: SelectionConfig, kept: int) -> ChosenBlocks:
    """Chooses for router_q [B, T, K, R]: the `kept` best blocks of the sketch are scored exactly; int32 [B, K, T, M].

    Ids ascending, then -1, as `choose_blocks`. No gradient.
    """
    router_q, summaries, sketch = jax.lax.stop_gradient((router_q, summaries, sketch))
    rough = block_scores(jnp.einsum("btkr,krd->btkd", router_q, sketch.query.astype(router_q.dtype)),
                         jnp.einsum("bknr,krd->bknd", summaries, sketch.summary.astype(summaries.dtype)))
    listed = choose_blocks(rough, place, dataclasses.replace(config, num_blocks=kept, fanouts=()))
    width, none = min(config.num_blocks, kept), summaries.shape[2]
    ranks, best = jax.lax.top_k(masked_scores(listed >= 0, scores_of(router_q, summaries, listed)), width)
    ids = jnp.where(ranks > -jnp.inf, jnp.take_along_axis(listed, best, axis=-1), none)
    return ascending(ids, none, config.num_blocks)
