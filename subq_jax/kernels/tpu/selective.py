"""Selective attention on the TPU: choose, list the blocks of every tile, attend.

Prefill and training run the kernels of `choose.py` and `attend.py`. Plain XLA does what it does as well: pooling the
summaries (one pass over the router's keys), the search of a tree, sorting ids, and the few queries of a decoding step,
which gather what they see. So far it also takes the gradients, given the same selection.
"""

import functools
import warnings

import jax
import jax.numpy as jnp

from subq_jax.axes import Outputs, Selection
from subq_jax.kernels.tpu.attend import AttendSizes, Lanes, attend_forward
from subq_jax.kernels.tpu.choose import ChoiceSizes, best_blocks
from subq_jax.kernels.tpu.limits import LANES, unsupported
from subq_jax.kernels.tpu.lists import tile_lists
from subq_jax.kernels.xla.layout import fold, fold_queries, repeat_heads, unfold_queries
from subq_jax.kernels.xla.selective import attend_backward, choose, sink_ids, xla_selective_attention
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.summaries import split_blocks
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys

CHOICE_SIZES, ATTEND_SIZES = ChoiceSizes(), AttendSizes()


def tpu_selective_attention(
    inputs: SelectiveInputs, config: SelectionConfig, *, gate: bool
) -> tuple[Outputs, Selection]:
    """Selective attention; see `subq_jax.selective_attention`. Sizes the kernels do not take fall back to XLA.

    Returns:
      the output [B, T, N, H] in `q`'s dtype and the selection int32 [B, T, K, M].
    """
    q, k, v, router_q, tree, place, present, selection = inputs
    reason = unsupported(inputs, config)
    if reason is not None:
        warnings.warn(f'implementation="tpu" falls back to "xla": {reason}', stacklevel=3)
    few = q.shape[1] * config.budget <= k.shape[1]  # they gather less than the kernels would lay out
    if few or reason is not None:
        return xla_selective_attention(inputs, config, gate=gate)
    if selection is None and not config.fanouts:
        router_q_fixed, summaries = jax.lax.stop_gradient((router_q, tree.levels[0]))
        chosen, scores = best_blocks(router_q_fixed, summaries, place, config, CHOICE_SIZES)
        chosen, scores = (unfold_slots(x, q.shape[0]) for x in (chosen, scores))
    else:
        chosen, scores = choose(router_q, tree, place, config, selection)
    scores = scores if gate else jnp.zeros_like(scores)
    out = _attend(config, gate, q, k, v, router_q, tree.levels[0], chosen, scores, place, present)
    return out, chosen.swapaxes(1, 2)


def unfold_slots(x, batch: int):
    """[X, M, T] -> [B, K, T, M]."""
    return x.swapaxes(1, 2).reshape(batch, -1, x.shape[2], x.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    return _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present)[0]


def _attend_forward(config, gate, q, k, v, router_q, summaries, chosen, scores, place, present):
    rows, lanes = fold_queries(q, k.shape[2]), query_lanes(config, chosen, scores, place)
    blocks = key_value_blocks(k, v, present, config.block_size)
    tokens, step = ATTEND_SIZES.tokens(rows.shape[2]), ATTEND_SIZES.step(config.block_size)
    lists = tile_lists(lanes.ids[..., : q.shape[1]], tokens, step)
    out, lse = attend_forward(rows, blocks, lanes, lists, ATTEND_SIZES)
    out = unfold_queries(out, q.shape[0])
    return out, (q, k, v, router_q, summaries, chosen, scores, place, present, out, lse)


_attend.defvjp(_attend_forward, attend_backward)


def query_lanes(config: SelectionConfig, chosen, scores, place: QueryPlace) -> Lanes:
    """The blocks that queries see, sink and local ones first, and the gates of chosen [B, K, T, M]."""
    heads, selected = chosen.shape[1], config.num_blocks
    always = jnp.concatenate([sink_ids(place, config), local_ids(place, config)], axis=-1)
    ids = jnp.concatenate([repeat_heads(always, heads), fold(chosen)], axis=-1)
    gates = jnp.pad(fold(scores), ((0, 0), (0, 0), (ids.shape[-1] - selected, 0)))
    lanes = lambda x, fill: jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % LANES)), constant_values=fill)
    return Lanes(lanes(ids.swapaxes(1, 2), -1), lanes(gates.swapaxes(1, 2), 0), lanes(place.position[:, None], -1))


def local_ids(place: QueryPlace, config: SelectionConfig):
    """Local blocks of every query: int32 [B, T, local_blocks], -1 for none."""
    local = place.block[..., None] - jnp.arange(config.local_blocks, dtype=jnp.int32)[None, None]
    return jnp.where((local >= place.first_block[..., None]) & place.exists[..., None], local, -1)


def key_value_blocks(k, v, present, block_size: int):
    """Keys and values of each block beside each other, so that one copy fetches both: [X, NB, 2, c, H]."""
    return jnp.stack([fold(split_blocks(clear_absent_keys(x, present), block_size)) for x in (k, v)], axis=2)
