"""How much of flat's choice a tree finds on a trained router, for many trees at once, and what each one looks at.

The model runs once, choosing flat; then every tree searches for the same sampled queries of every selective layer. A
tree plays no part in what routers compute, so one trained model serves them all.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.axes import ChosenBlocks, RouterQueries, Scores, Summaries, Tokens
from subq_jax.evaluation.routing import own_weight, sample_positions, sampled_place
from subq_jax.kernels.xla.dense import chunk_rows
from subq_jax.kernels.xla.layout import map_query_chunks
from subq_jax.model.attention_modules import SelectiveAttention
from subq_jax.model.decoder import Decoder
from subq_jax.selection.choose import block_scores, choose_blocks
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import block_summaries
from subq_jax.selection.tree import search_tree, tree_above


class _Flat(NamedTuple):
    """A layer's flat choice for the sampled queries; [B, m, K, M] where blocks are listed, -1 and 0 for none."""

    router_q: RouterQueries
    summaries: Summaries
    ids: ChosenBlocks
    weight: Scores  # the layer's own softmax weight on the chosen blocks


def tree_statistics(
    model: Decoder, tokens: Tokens, trees: Iterable[tuple[tuple[int, ...], int]], num_runs: int = 32
) -> list[dict[str, float]]:
    """What each tree finds, the mean over selective layers, KV heads and sampled queries.

    Args:
      model: a `Decoder` whose mechanism has a router; its own tree is not used.
      tokens: int32 [B, T], sequences of one document each.
      trees: (fanouts, beam_width) of each tree.
      num_runs: runs of 16 neighbouring tokens that are sampled from the second half of each sequence.

    Returns:
      of every tree `recall`: share of flat's blocks that it finds; `weight_recall`: the same, each block counting by
      the softmax weight that the layer gives it; `certified`: share of queries where the choice is sure to be flat's;
      `scored`: summaries that it scores for a query at most, over those that flat scores.

    Raises:
      ValueError: if the model has no router, for a tree that cannot hold the selection, and for sequences so short that
        no sampled query has a block to choose.
    """
    layers = [layer.attention for layer in model.layers if isinstance(layer.attention, SelectiveAttention)]
    if not layers:
        raise ValueError(f"model must have layers with a router, got mechanism={model.config.mechanism!r}")
    flat = dataclasses.replace(layers[0].selection, fanouts=())
    configs = [dataclasses.replace(flat, fanouts=fanouts, beam_width=beam) for fanouts, beam in trees]
    positions = sample_positions(tokens.shape[1], num_runs)
    graphdef, params = nnx.split(model)
    choices = _flat_choices(graphdef, params, jnp.asarray(tokens), positions, flat)
    if not any((choice.ids >= 0).any() for choice in choices):
        raise ValueError(f"tokens must be long enough to have blocks to choose from, got length {tokens.shape[1]}")
    return [_compare(choices, positions, config) for config in configs]


def scored_share(config: SelectionConfig, num_blocks: int) -> float:
    """Summaries that a search through the tree scores for a query at most, over the `num_blocks` that flat scores."""
    nodes = [num_blocks]
    for fanout in config.fanouts:
        nodes.append(-(-nodes[-1] // fanout))
    below = [min(config.beam_width + 2, nodes[level]) * config.fanouts[level - 1]
             for level in range(1, len(nodes))]  # two partial nodes are expanded beside the beam
    return (nodes[-1] + sum(below)) / num_blocks


@functools.partial(jax.jit, static_argnums=(0, 4))
def _flat_choices(graphdef, params, tokens, positions, config: SelectionConfig) -> list[_Flat]:
    model = nnx.merge(graphdef, params)
    x, choices = model.embed(tokens), []
    for layer in model.layers:
        if isinstance(layer.attention, SelectiveAttention):
            layer.attention.selection = config
            choices.append(_flat_choice(layer.attention, layer.attention_norm(x), positions))
        x = layer(x, segment_ids=None, phase="sparse", distil=False, decode=False)
    return choices


def _flat_choice(attention: SelectiveAttention, x, positions) -> _Flat:
    config = attention.selection
    q, k, _ = attention.project(x)
    router_q, router_k = attention.route(q, k)
    summaries = block_summaries(router_k, config.block_size, config.pooling)

    def chunk(args):
        q, router_q, place = args
        scores = block_scores(router_q, summaries)
        ids = choose_blocks(scores, place, config)
        weight = own_weight(q, k, place, config, scores, ids, attention.gate)
        weight = jnp.where(ids >= 0, jnp.take_along_axis(weight, jnp.maximum(ids, 0), axis=-1), 0.0)
        return jnp.moveaxis(ids, 1, 2), jnp.moveaxis(weight, 1, 2)

    sampled = q[:, positions], router_q[:, positions], sampled_place(positions, x.shape[0], config)
    ids, weight = map_query_chunks(chunk, sampled, chunk_rows(x.shape[0] * q.shape[2] * k.shape[1]))
    return _Flat(sampled[1], summaries, ids, weight)


def _compare(choices: list[_Flat], positions, config: SelectionConfig) -> dict[str, float]:
    found = [_found(flat, positions, config) for flat in choices]
    stats = {name: float(jnp.stack([layer[name] for layer in found]).mean()) for name in found[0]}
    return stats | {"scored": scored_share(config, choices[0].summaries.shape[2])}


@functools.partial(jax.jit, static_argnums=2)
def _found(flat: _Flat, positions, config: SelectionConfig):
    tree = tree_above(flat.summaries, config)
    batch, _, heads, width = flat.router_q.shape

    def chunk(args):
        router_q, place = args
        choice = search_tree(router_q, tree, place, config)
        return jnp.moveaxis(choice.chosen, 1, 2), jnp.moveaxis(choice.certified, 1, 2)

    expanded = config.beam_width * max(config.fanouts, default=1)  # without fan-outs it is flat's own choice
    rows = chunk_rows(batch * heads * width * expanded)
    chosen, certified = map_query_chunks(chunk, (flat.router_q, sampled_place(positions, batch, config)), rows)
    found = (flat.ids[..., :, None] == chosen[..., None, :]).any(axis=-1) & (flat.ids >= 0)
    return {"recall": found.sum() / (flat.ids >= 0).sum(),
            "weight_recall": jnp.where(found, flat.weight, 0.0).sum() / flat.weight.sum(),
            "certified": certified.mean()}
