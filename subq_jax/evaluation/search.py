"""How cheaply a trained router's choice can be found: trees and sketches against flat choosing.

The model runs once, choosing flat; then every search looks for the same sampled queries of every selective layer. A
search plays no part in what routers compute, so one trained model serves them all.
"""

import dataclasses
import functools
from collections.abc import Sequence
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
from subq_jax.selection.sketch import Sketch, fit_sketch, search_sketch
from subq_jax.selection.summaries import block_summaries
from subq_jax.selection.tree import search_tree, tree_above


class TreeSearch(NamedTuple):
    """Through a tree, see `subq_jax.selection.tree`."""

    fanouts: tuple[int, ...]
    beam_width: int


class SketchSearch(NamedTuple):
    """Through `rank` channels, the `kept` best blocks scored in full, see `subq_jax.selection.sketch`."""

    rank: int
    kept: int


class _Flat(NamedTuple):
    """A layer's flat choice for the sampled queries; [B, m, K, M] where blocks are listed, -1 and 0 for none."""

    router_q: RouterQueries
    summaries: Summaries
    ids: ChosenBlocks
    weight: Scores  # the layer's own softmax weight on the chosen blocks


def search_statistics(model: Decoder, tokens: Tokens, searches: Sequence[TreeSearch | SketchSearch],
                      fitted_to: Tokens | None = None, num_runs: int = 32) -> list[dict[str, float]]:
    """What each search finds, the mean over selective layers, KV heads and sampled queries.

    Args:
      model: a `Decoder` whose mechanism has a router; its own tree is not used.
      tokens: int32 [B, T], sequences of one document each.
      searches: the searches to compare.
      fitted_to: int32 [B, T], other sequences, to which sketches are fitted.
      num_runs: runs of 16 neighbouring tokens that are sampled from the second half of each sequence; eight times as
        many are fitted to.

    Returns:
      of every search `recall`: share of flat's blocks that it finds; `weight_recall`: the same, each block counting by
      the softmax weight that the layer gives it; `certified`: share of queries where the choice is sure to be flat's;
      `cost`: products of one channel that it takes for a query at most, over those that flat takes.

    Raises:
      ValueError: if the model has no router, for a search that cannot hold the selection, sketches and nothing to fit
        them to, and for sequences so short that no sampled query has a block to choose.
    """
    layers = [layer.attention for layer in model.layers if isinstance(layer.attention, SelectiveAttention)]
    if not layers:
        raise ValueError(f"model must have layers with a router, got mechanism={model.config.mechanism!r}")
    flat = dataclasses.replace(layers[0].selection, fanouts=())
    trees = [_tree(flat, search) for search in searches]  # wrong ones are refused before anything is computed
    choices, seen = _flat_choices(model, tokens, flat, num_runs), None
    if not any((choice.ids >= 0).any() for choice in choices):
        raise ValueError(f"tokens must be long enough to have blocks to choose from, got length {tokens.shape[1]}")
    if any(isinstance(search, SketchSearch) for search in searches):
        if fitted_to is None:
            raise ValueError("fitted_to must hold the sequences that sketches are fitted to")
        seen = _flat_choices(model, fitted_to, flat, 8 * num_runs)
    positions = sample_positions(tokens.shape[1], num_runs)
    found = []
    for search, tree in zip(searches, trees, strict=True):
        maps = [None if tree else fit_sketch(layer.router_q, layer.summaries, search.rank) for layer in seen or choices]
        stats = [_found(layer, sketch, positions, tree or flat, 0 if tree else search.kept)
                 for layer, sketch in zip(choices, maps, strict=True)]
        mean = {name: float(jnp.stack([layer[name] for layer in stats]).mean()) for name in stats[0]}
        found.append(mean | {"cost": _cost(search, tree, *choices[0].summaries.shape[2:])})
    return found


def _tree(flat: SelectionConfig, search) -> SelectionConfig | None:
    if isinstance(search, TreeSearch):
        return dataclasses.replace(flat, fanouts=search.fanouts, beam_width=search.beam_width)
    if not search.rank >= 1 or search.kept < flat.num_blocks:
        raise ValueError(f"a sketch must have rank >= 1 and keep >= num_blocks={flat.num_blocks}, got {search}")
    return None


def _cost(search, tree: SelectionConfig | None, num_blocks: int, width: int) -> float:
    if tree is None:
        of_query = search.rank / num_blocks  # mapping it takes as many products as `rank` blocks of all channels
        return of_query + search.rank / width + min(1.0, search.kept / num_blocks)
    nodes = [num_blocks]
    for fanout in tree.fanouts:
        nodes.append(-(-nodes[-1] // fanout))
    below = [min(tree.beam_width + 2, nodes[level]) * tree.fanouts[level - 1]
             for level in range(1, len(nodes))]  # two partial nodes are expanded beside the beam
    return (nodes[-1] + sum(below)) / num_blocks


def _flat_choices(model: Decoder, tokens: Tokens, config: SelectionConfig, num_runs: int) -> list[_Flat]:
    graphdef, params = nnx.split(model)
    return _run(graphdef, params, jnp.asarray(tokens), sample_positions(tokens.shape[1], num_runs), config)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(graphdef, params, tokens, positions, config: SelectionConfig) -> list[_Flat]:
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


@functools.partial(jax.jit, static_argnums=(3, 4))
def _found(flat: _Flat, sketch: Sketch | None, positions, config: SelectionConfig, kept: int):
    batch, _, heads, width = flat.router_q.shape
    tree = tree_above(flat.summaries, config)

    def chunk(args):
        router_q, place = args
        if sketch is None:
            choice = search_tree(router_q, tree, place, config)
            chosen, certified = choice.chosen, choice.certified
        else:
            chosen = search_sketch(router_q, flat.summaries, sketch, place, config, kept)
            certified = jnp.zeros(chosen.shape[:-1], bool)
        return jnp.moveaxis(chosen, 1, 2), jnp.moveaxis(certified, 1, 2)

    listed = kept if sketch is not None else config.beam_width * max(config.fanouts, default=1)
    rows = chunk_rows(batch * heads * max(width * listed, flat.summaries.shape[2]))
    chosen, certified = map_query_chunks(chunk, (flat.router_q, sampled_place(positions, batch, config)), rows)
    found = (flat.ids[..., :, None] == chosen[..., None, :]).any(axis=-1) & (flat.ids >= 0)
    return {"recall": found.sum() / (flat.ids >= 0).sum(),
            "weight_recall": jnp.where(found, flat.weight, 0.0).sum() / flat.weight.sum(),
            "certified": certified.mean()}
