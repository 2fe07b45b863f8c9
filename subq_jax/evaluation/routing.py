"""How well a router chooses, and whether its choices suit a machine.

Looks at a sample of queries: runs of 16 neighbouring tokens, evenly spread over the second half of a sequence. For each
it compares what the router chose with what dense attention, on the same queries and keys, would have looked at.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from subq_jax.attention.mechanisms import ROUTED
from subq_jax.axes import ChosenBlocks, Tokens
from subq_jax.checks import check_integer
from subq_jax.data import DataConfig, make_eval_batches
from subq_jax.kernels.xla.dense import chunk_rows
from subq_jax.kernels.xla.layout import map_query_chunks
from subq_jax.kernels.xla.mass import block_mass
from subq_jax.kernels.xla.tile import NO_KEYS
from subq_jax.model.attention_modules import SelectiveAttention
from subq_jax.model.decoder import Decoder
from subq_jax.selection.choose import block_scores, choose_blocks
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.tree import build_tree, search_tree
from subq_jax.selection.visibility import QueryPlace, is_candidate, is_local, is_sink

RUN = 16  # neighbouring tokens of a run
NEIGHBOURS = (4, 8, 16)
OF_A_TREE = ("tree_recall", "certified")
SEARCHED_BATCHES = 16  # of text, for rows that one document fills


class _Seen(NamedTuple):
    """Of every sampled query [B, m, K]: weights of dense and of gated attention on groups of blocks, and gates."""

    candidates: jax.Array  # dense weight on all candidates
    chosen: jax.Array  # dense weight on the chosen ones
    best: jax.Array  # dense weight on as many candidates as were chosen, the heaviest
    common: jax.Array  # chosen blocks that are among those heaviest
    count: jax.Array  # chosen blocks
    visible: jax.Array  # dense weight on sink, local and chosen blocks
    gated: jax.Array  # the layer's own weight on the chosen blocks
    found: jax.Array  # chosen blocks that the tree search finds
    certified: jax.Array  # whether the tree is sure of that
    gate: jax.Array  # [B, m, K, M], scores of the chosen blocks, NaN where there is none
    ids: jax.Array  # [B, m, K, M]


def held_out_routing(
    model: Decoder, data_config: Mapping[str, Any], *, length: int, batch_size: int, seed: int
) -> dict[str, float | None]:
    """`routing_statistics` on one held-out batch, names prefixed by `routing_`; {} for a model without a router.

    Those of a tree only where the model has one. None stands for what is not a number, as JSON has none.
    """
    if model.config.mechanism not in ROUTED or "selective" not in model.config.layer_kinds:
        return {}
    tokens = held_out_tokens(model, data_config, length=length, batch_size=batch_size, seed=seed)
    stats = routing_statistics(model, tokens)
    if not model.config.fanouts:
        stats = {name: value for name, value in stats.items() if name not in OF_A_TREE}
    return {f"routing_{name}": value if math.isfinite(value) else None for name, value in stats.items()}


def held_out_tokens(
    model: Decoder, data_config: Mapping[str, Any], *, length: int, batch_size: int, seed: int
) -> np.ndarray:
    """int32 [batch_size, length], held-out sequences as the statistics want them: of one document each.

    Rows of text may hold several: those that a single document fills come first, and there are fewer than `batch_size`
    only where the held-out data has no more.
    """
    data = DataConfig.from_mapping(data_config)
    batches = make_eval_batches(data, seed=seed, block_size=model.config.block_size, length=length,
                                num_batches=SEARCHED_BATCHES if data.task == "text" else 1, batch_size=batch_size)
    inputs, segment_ids = (np.concatenate([batch[name] for batch in batches]) for name in ("inputs", "segment_ids"))
    return inputs[np.argsort((segment_ids != 0).sum(axis=1), kind="stable")[:batch_size]]  # earlier rows win ties


def routing_statistics(model: Decoder, tokens: Tokens, num_runs: int = 32) -> dict[str, float]:
    """Statistics of the routers of a model with selective layers, the mean over layers, KV heads and sampled queries.

    Args:
      model: a `Decoder` whose mechanism has a router.
      tokens: int32 [B, T], sequences of one document each.
      num_runs: runs of 16 neighbouring tokens that are sampled from each sequence.

    Returns:
      `dense_weight_visible`: share of dense attention's weight that lies on what the router's layer sees;
      `candidate_weight`: its share on candidates, which needs choosing; `weight_recall`: how much of that is chosen;
      `best_weight_recall`: how much the best choice of as many blocks would get; `block_recall`: share of that choice
      that the router makes too; `tree_recall` and `certified`: share of flat's choice that the tree finds, and of
      queries where that is certain (both 1 without a tree); `gate_mean`, `gate_p99`: scores of chosen blocks, nats;
      `chosen_weight`: the layer's own softmax weight on chosen blocks; `usage_entropy`: entropy of how often each
      block is chosen, over the logarithm of the number of blocks; `union_4`, `union_8`, `union_16`: distinct blocks
      that so many neighbours choose together, over one's. NaN where no query has a candidate.

    Raises:
      ValueError: if the model has no router.
    """
    if not any(isinstance(layer.attention, SelectiveAttention) for layer in model.layers):
        raise ValueError(f"model must have layers with a router, got mechanism={model.config.mechanism!r}")
    graphdef, params = nnx.split(model)
    stats = _statistics(graphdef, params, jnp.asarray(tokens), sample_positions(tokens.shape[1], num_runs))
    return {name: float(value) for name, value in stats.items()}


def sample_positions(length: int, num_runs: int) -> jax.Array:
    """Positions int32 [m] of the sampled queries: at most `num_runs` runs of neighbours in the second half."""
    check_integer("num_runs", num_runs)
    runs = min(num_runs, max(1, length // (2 * RUN)))
    starts = length // 2 + (jnp.arange(runs) * (length - length // 2 - min(RUN, length)) // max(1, runs - 1))
    rows = jnp.maximum(starts, 0)[:, None] + jnp.arange(min(RUN, length))[None]
    return jnp.minimum(rows, length - 1).reshape(-1)


def sampled_place(positions, batch: int, config: SelectionConfig) -> QueryPlace:
    """Where queries at `positions` [m] of `batch` sequences of one document stand."""
    position = jnp.broadcast_to(positions[None].astype(jnp.int32), (batch, positions.shape[0]))
    zero = jnp.zeros_like(position)
    return QueryPlace(position, position // config.block_size, zero, zero, jnp.ones_like(position, dtype=bool))


@functools.partial(jax.jit, static_argnums=0)
def _statistics(graphdef, params, tokens, rows):
    model = nnx.merge(graphdef, params)
    x, layers = model.embed(tokens), []
    for layer in model.layers:
        if isinstance(layer.attention, SelectiveAttention):
            layers.append(_layer_statistics(layer.attention, layer.attention_norm(x), rows))
        x = layer(x, segment_ids=None, phase="sparse", distil=False, decode=False)
    return {name: jnp.stack([stats[name] for stats in layers]).mean() for name in layers[0]}


def _layer_statistics(attention: SelectiveAttention, x, rows):
    config = attention.selection
    q, k, _ = attention.project(x)
    router_q, router_k = attention.route(q, k)
    tree = build_tree(router_k, config)
    place = sampled_place(rows, x.shape[0], config)

    def chunk(args):
        seen = _look(*args, k, tree, config, attention.gate)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), seen)

    per_query = x.shape[0] * q.shape[2] * k.shape[1]
    seen = map_query_chunks(chunk, (q[:, rows], router_q[:, rows], place), chunk_rows(per_query))
    return _summary(seen, tree.levels[0].shape[2])


def _look(q, router_q, place, k, tree, config, gate: bool) -> _Seen:
    scores = block_scores(router_q, tree.levels[0])
    ids = choose_blocks(scores, place, config)
    mass = block_mass(q, k, place, config.block_size)
    best = _mark(choose_blocks(mass, place, config), mass.shape[-1])
    chosen = _mark(ids, mass.shape[-1])
    block = jnp.arange(mass.shape[-1], dtype=jnp.int32)[None, None]
    candidate = is_candidate(block, place, config)[:, None]
    visible = _always(mass.shape[-1], place, config) | chosen
    gated = own_weight(q, k, place, config, scores, ids, gate)
    if config.fanouts:
        searched = search_tree(router_q, tree, place, config)
        found, certified = (chosen & _mark(searched.chosen, mass.shape[-1])).sum(axis=-1), searched.certified
    else:
        found, certified = chosen.sum(axis=-1), jnp.ones(ids.shape[:-1], bool)
    gates = jnp.where(ids >= 0, jnp.take_along_axis(scores, jnp.maximum(ids, 0), axis=-1), jnp.nan)
    total = lambda weight, where: jnp.where(where, weight, 0.0).sum(axis=-1)
    return _Seen(total(mass, candidate), total(mass, chosen), total(mass, best), (chosen & best).sum(axis=-1),
                 chosen.sum(axis=-1), total(mass, visible), total(gated, chosen), found, certified, gates, ids)


def own_weight(q, k, place: QueryPlace, config: SelectionConfig, scores, ids: ChosenBlocks, gate: bool):
    """The softmax weight on every block, [B, K, m, NB], of attention to sink, local and the chosen blocks."""
    chosen = _mark(ids, scores.shape[-1])
    visible = _always(scores.shape[-1], place, config) | chosen
    bias = jnp.where(visible, jnp.where(chosen, scores, 0.0) if gate else 0.0, NO_KEYS)
    return block_mass(q, k, place, config.block_size, bias)


def _always(num_blocks: int, place: QueryPlace, config: SelectionConfig):
    """bool [B, 1, m, NB]: sink and local blocks."""
    block = jnp.arange(num_blocks, dtype=jnp.int32)[None, None]
    return (is_sink(block, place, config) | is_local(block, place, config))[:, None]


def _mark(ids: ChosenBlocks, num_blocks: int):
    """bool [B, K, m, NB] of ids [B, K, m, M]."""
    mark = lambda ids: jnp.zeros(num_blocks, bool).at[jnp.where(ids < 0, num_blocks, ids)].set(True, mode="drop")
    return jax.vmap(jax.vmap(jax.vmap(mark)))(ids)


def _summary(seen: _Seen, num_blocks: int) -> dict[str, jax.Array]:
    share = lambda part, whole: part.sum(dtype=jnp.float32) / whole.sum(dtype=jnp.float32)
    stats = {
        "dense_weight_visible": seen.visible.mean(),
        "candidate_weight": seen.candidates.mean(),
        "weight_recall": share(seen.chosen, seen.candidates),
        "best_weight_recall": share(seen.best, seen.candidates),
        "block_recall": share(seen.common, seen.count),
        "tree_recall": share(seen.found, seen.count),
        "certified": seen.certified.mean(),
        "gate_mean": jnp.nanmean(seen.gate),
        "gate_p99": jnp.nanpercentile(seen.gate, 99),
        "chosen_weight": seen.gated.mean(),
    }
    return stats | usage(seen.ids, num_blocks)


def usage(ids: ChosenBlocks, num_blocks: int) -> dict[str, jax.Array]:
    """How queries [B, m, K, M] use the blocks: `usage_entropy` and `union_4`, `union_8`, `union_16` of
    `routing_statistics`, of neighbouring queries."""
    used = jnp.bincount(jnp.where(ids < 0, num_blocks, ids).ravel(), length=num_blocks + 1)[:num_blocks]
    frequency = used / jnp.maximum(used.sum(), 1)
    entropy = -(frequency * jnp.log(jnp.maximum(frequency, 1e-30))).sum()
    return {"usage_entropy": entropy / jnp.log(num_blocks)} | {
        f"union_{size}": _union(ids, size) for size in NEIGHBOURS}


def _union(ids, size: int) -> jax.Array:
    """Distinct blocks that `size` neighbours of ids [B, m, K, M] choose, over the mean of one's."""
    batch, queries, heads, width = ids.shape
    queries -= queries % size
    together = ids[:, :queries].reshape(batch, -1, size, heads, width).swapaxes(2, 3).reshape(-1, size * width)
    together = jnp.sort(together, axis=-1)
    before = jnp.pad(together[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    new = (together != before) & (together >= 0)
    return size * new.sum(dtype=jnp.float32) / (together >= 0).sum(dtype=jnp.float32)
