"""The second route to a router: teach it where dense attention looks."""

import functools

import jax
import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.axes import Keys, Queries, RouterKeys, RouterQueries, SegmentIds
from subq_jax.kernels.xla.dense import chunk_rows
from subq_jax.kernels.xla.layout import map_query_chunks
from subq_jax.kernels.xla.mass import block_mass, divergence
from subq_jax.selection.choose import block_scores
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import block_summaries
from subq_jax.selection.visibility import clear_absent_keys, clear_padding_rows


def router_divergence(
    q: Queries,
    k: Keys,
    router_q: RouterQueries,
    router_k: RouterKeys,
    config: SelectionConfig,
    segment_ids: SegmentIds | None = None,
) -> jax.Array:
    """How far the router's choice is from dense attention's weight on the blocks, in nats.

    The mean over queries and KV heads of KL(dense || softmax of scores), over a query's candidates and one class more
    for all that it sees without choosing, whose score is 0: a score says how much a block matters beside what is seen
    anyway. Dense weight is averaged over the head group. Gradients reach `router_q` and `router_k` alone. Costs as much
    time as dense attention, but memory for a chunk of queries only.

    Args:
      q: queries [B, T, N, H].
      k: keys [B, T, K, H].
      router_q: router queries [B, T, K, R].
      router_k: router keys [B, T, K, R].
      config: the selection; `num_blocks` and the tree play no part.
      segment_ids: int [B, T], packed documents.

    Returns:
      a float32 scalar.

    Raises:
      TypeError, ValueError: for arguments that do not fit together, naming the argument.

    Source: the indexer's warm-up of DeepSeek-V3.2-Exp, per block instead of per token.
    """
    checks.check_selective_arrays(q, k, k, router_q, router_k, config)
    place, present = checks.locate(q, k, None, None, segment_ids, config.block_size)
    q, router_q = (clear_padding_rows(x, place) for x in (q, router_q))
    k, router_k = (clear_absent_keys(x, present) for x in (k, router_k))
    q, k = jax.lax.stop_gradient((q, k))
    summaries = block_summaries(router_k, config.block_size, config.pooling)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(args):
        q, router_q, place = args
        mass = block_mass(q, k, place, config.block_size)
        return divergence(mass, block_scores(router_q, summaries), place, config).swapaxes(1, 2)

    rows = chunk_rows(q.shape[0] * q.shape[2] * k.shape[1])
    total = map_query_chunks(chunk, (q, router_q, place), rows).sum()
    return total / (jnp.maximum(place.exists.sum(), 1) * k.shape[2])
