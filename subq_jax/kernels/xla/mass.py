"""Where dense attention puts its weight, block by block: what a router is taught, and what it is judged by.

Both functions look at a chunk of queries; a whole sequence goes through `map_query_chunks`, so that T x S never is in
memory. They cost as much as dense attention.
"""

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.dense import visible_keys
from subq_jax.kernels.xla.layout import fold, fold_keys, fold_queries, repeat_heads
from subq_jax.kernels.xla.tile import NO_KEYS, tile_logits
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import num_key_blocks
from subq_jax.selection.visibility import QueryPlace, is_candidate


def block_mass(q, k, place: QueryPlace, block_size: int, bias=None):
    """Dense attention's weight on each block, averaged over the head group.

    q [B, m, N, H] at `place`, k [B, S, K, H]: float32 [B, K, m, NB]. Rows sum to 1, those of padding to 0. A `bias`
    [B, K, m, NB] on the logits of a block's tokens makes it that of gated attention, where NO_KEYS hides a block.
    """
    batch, (length, kv_heads) = q.shape[0], k.shape[1:3]
    visible = repeat_heads(visible_keys(place, length), kv_heads)[:, :, None]
    of_token = 0.0
    if bias is not None:
        of_token = jnp.repeat(fold(bias), block_size, axis=-1)[..., :length][:, :, None]
    logits = jnp.where(visible, tile_logits(fold_queries(q, kv_heads), fold_keys(k), of_token), NO_KEYS)
    weights = jnp.where(visible, jax.nn.softmax(logits, axis=-1), 0.0).mean(axis=2)
    blocks = num_key_blocks(length, block_size)
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, blocks * block_size - length)))
    return weights.reshape(batch, kv_heads, q.shape[1], blocks, block_size).sum(axis=-1)


def divergence(mass, scores, place: QueryPlace, config: SelectionConfig):
    """Divergence of the router's choice from dense attention's weight: float32 [B, K, m] of mass, scores [B, K, m, NB].

    KL(mass || softmax(scores)) over the candidates and one class more: all that a query sees without choosing, at
    score 0. Without it the softmax would leave the level of the scores free, and a gate drifted tens of nats away.
    """
    block = jnp.arange(mass.shape[-1], dtype=jnp.int32)[None, None]
    candidate = is_candidate(block, place, config)[:, None]
    share = jnp.concatenate(
        [jnp.where(candidate, 0.0, mass).sum(axis=-1, keepdims=True), jnp.where(candidate, mass, 0.0)], axis=-1)
    scores = jnp.concatenate([jnp.zeros_like(scores[..., :1]), jnp.where(candidate, scores, NO_KEYS)], axis=-1)
    log_choice = jax.nn.log_softmax(scores, axis=-1)
    return jnp.where(share > 0, share * (jnp.log(jnp.maximum(share, 1e-30)) - log_choice), 0.0).sum(axis=-1)
