"""The oracle of selective attention: dense, masked, float32, and obvious.

Every other implementation is tested against this file. It holds T x S arrays and is meant for small inputs.
"""

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.selection.choose import admit_selection, block_scores, choose_blocks, masked_scores
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.tree import is_full, is_partial
from subq_jax.selection.visibility import clear_absent_keys, is_local, is_sink


def reference_selective_attention(
    inputs: SelectiveInputs, config: SelectionConfig, *, gate: bool
) -> tuple[Outputs, Selection]:
    """Selective attention by definition; see `subq_jax.selective_attention`.

    Returns:
      the output [B, T, N, H] in `q`'s dtype and the selection int32 [B, T, K, M].
    """
    q, k, v, router_q, tree, place, present, selection = inputs
    k, v = clear_absent_keys(k, present), clear_absent_keys(v, present)
    length, group = k.shape[1], q.shape[2] // k.shape[2]
    scores = block_scores(router_q, tree.levels[0])
    if selection is None:
        reached = blocks_reached(*jax.lax.stop_gradient((router_q, tree)), place, config)
        chosen_ids = choose_blocks(jax.lax.stop_gradient(scores), place, config, reached)
    else:
        chosen_ids = admit_selection(selection.swapaxes(1, 2), place, config, scores.shape[-1])

    block = jnp.arange(scores.shape[-1])[None, None]
    chosen = (chosen_ids[..., None] == block[None, None]).any(axis=-2)  # [B, K, T, NB]
    always = (is_sink(block, place, config) | is_local(block, place, config))[:, None]
    position = jnp.arange(length)
    key = position[None, None]
    causal = (key <= place.position[..., None]) & present[:, None] & place.exists[..., None]
    visible = causal[:, None] & jnp.take(chosen | always, position // config.block_size, axis=-1)
    gates = jnp.where(chosen, scores, 0.0) if gate else jnp.zeros_like(scores)
    bias = jnp.take(gates, position // config.block_size, axis=-1)

    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    grouped = q32.reshape(*q.shape[:2], k.shape[2], group, q.shape[3])
    highest = jax.lax.Precision.HIGHEST
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k32, precision=highest) / jnp.sqrt(jnp.float32(q.shape[3]))
    weights = masked_softmax(logits + bias[:, :, None], visible[:, :, None])
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v32, precision=highest).reshape(q.shape)
    return out.astype(q.dtype), chosen_ids.swapaxes(1, 2)


def masked_softmax(logits, visible):
    """Softmax over the last axis among `visible` entries; rows that see nothing are all zero."""
    top = jax.lax.stop_gradient(jnp.max(jnp.where(visible, logits, -jnp.inf), axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.where(visible, jnp.exp(jnp.where(visible, logits - top, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total == 0.0, 1.0, total)


def blocks_reached(router_q, tree, place, config: SelectionConfig):
    """Which blocks a search of the tree comes to, bool [B, K, T, NB]: every node of every level is looked at."""
    shape = (*tree.levels[-1].shape[:2], router_q.shape[1])
    active = jnp.ones((*shape, tree.levels[-1].shape[2]), dtype=bool)
    for level in range(len(config.fanouts), 0, -1):
        node = jnp.arange(active.shape[-1])[None, None]
        full = active & is_full(node, level, place, config)[:, None]
        scores = masked_scores(full, block_scores(router_q, tree.levels[level]))
        order = jnp.argsort(scores, axis=-1, descending=True, stable=True)
        kept = full & (jnp.argsort(order, axis=-1) < config.beam_width)
        expanded = kept | (active & is_partial(node, level, place, config)[:, None])
        active = jnp.repeat(expanded, config.fanouts[level - 1], axis=-1)[..., : tree.levels[level - 1].shape[2]]
    return active
