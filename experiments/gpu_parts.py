"""The parts of the GPU implementation one by one, each with the results of those before it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax import SelectionConfig
from subq_jax.attention.checks import locate
from subq_jax.kernels.gpu.attend import attend
from subq_jax.kernels.gpu.backward_keys import backward_keys
from subq_jax.kernels.gpu.backward_queries import backward_queries
from subq_jax.kernels.gpu.inverse import inverse_lists
from subq_jax.kernels.gpu.selective import MULTIPROCESSORS, PAIRS, Tiles, choose_flat, lay_out
from subq_jax.kernels.gpu.tile import HALF, STEP_KEYS, TILE, tokens_of_tile
from subq_jax.kernels.xla.layout import fold_keys, whole_rows
from subq_jax.kernels.xla.tile import row_delta
from subq_jax.selection.tree import build_tree
from subq_jax.selection.visibility import candidate_range

PARTS = ("summaries", "choice", "lists", "attention", "backward_queries", "inverse", "backward_keys")


class Part(NamedTuple):
    """A function, what to call it with, and facts to note beside its time."""

    function: Callable
    arguments: tuple
    facts: dict[str, float]


def gpu_parts(values: tuple[jax.Array, ...], config: SelectionConfig, *, uniform: bool) -> dict[str, Part]:
    """What `implementation="gpu"` does, in parts.

    Args:
      values: q [1, T, N, H], k, v [1, T, K, H], router_q, router_k [1, T, K, R].
      config: flat choosing.
      uniform: whether attention gets distinct past blocks drawn at random, of which neighbours share none on purpose,
        in place of the router's choice. The choice is timed all the same.

    Returns:
      the parts by name, those of `PARTS`. `visited_flops` of attention counts two products of the 128 rows of every
      tile with all keys on its list, `worked_flops` of each 64 rows with those of the steps that they take;
      `union` is the blocks on a tile's list over those of one of its tokens.
    """
    q, k, v, router_q, router_k = values
    tokens, block = tokens_of_tile(q.shape[2] // k.shape[2]), config.block_size
    sizes = tokens, block, MULTIPROCESSORS
    place, present = locate(q, k, None, None, None, block)

    pool = lambda router_k: build_tree(router_k, config).levels[0]
    summaries = jax.jit(pool)(router_k)
    choose = lambda router_q, summaries: choose_flat(router_q, summaries, place, config)
    chosen, scores = jax.jit(choose)(router_q, summaries)
    if uniform:
        chosen = uniform_choice(*candidate_range(place, config), config.num_blocks, k.shape[2])
        scores = jnp.zeros(chosen.shape)

    lay = lambda *x: lay_out(config, *x, place, present)[:-1]
    tiles = Tiles(*jax.jit(lay)(q, k, v, chosen, scores), tokens)
    lists, offset = tiles.of_tiles, tiles.offset
    listed = (tiles.of_tokens.ids >= 0).sum(dtype=jnp.float32) / tokens
    product = 2 * q.shape[3]
    facts = {"union": float(lists.entries.sum(dtype=jnp.float32) / listed),
             "visited_flops": float(2 * product * TILE * block * lists.entries.sum(dtype=jnp.float32)),
             "worked_flops": float(
                 2 * product * HALF * max(block, STEP_KEYS) * lists.steps.sum(dtype=jnp.float32))}

    forward = lambda q, k, v, lists, offset: attend(q, k, v, lists, offset, *sizes)
    arguments = tiles.q, tiles.k, tiles.v, lists, offset
    out, lse = jax.jit(forward)(*arguments)
    delta = jax.jit(row_delta)(out, out)
    backward = lambda *x: backward_queries(*x, *sizes)
    weights = jnp.zeros(tiles.of_tokens.ids.shape)
    invert = lambda of_tokens, weights: inverse_lists(of_tokens, weights, tiles.k.shape[1] // block, block, PAIRS)
    inverse = jax.jit(invert)(tiles.of_tokens, weights)
    backward_inverse = lambda *x: backward_keys(*x, *sizes)
    rows = whole_rows(fold_keys(router_q), tokens)
    return {
        "summaries": Part(pool, (router_k,), {}),
        "choice": Part(choose, (router_q, summaries), {}),
        "lists": Part(lay, (q, k, v, chosen, scores), {}),
        "attention": Part(forward, arguments, facts),
        "backward_queries": Part(backward, (tiles.q, out, lse, delta, tiles.k, tiles.v, lists, offset), {}),
        "inverse": Part(invert, (tiles.of_tokens, weights), {}),
        "backward_keys": Part(
            backward_inverse, (tiles.q, out, lse, delta, rows, tiles.k, tiles.v, inverse, offset), {}),
    }


def uniform_choice(low: jax.Array, high: jax.Array, count: int, kv_heads: int) -> jax.Array:
    """Distinct blocks drawn from `low` to `high` [1, T, 1], int32 [K, T, M] descending, then -1.

    A block drawn twice counts once, so that early queries, who have few to draw from, get a few less than they could.
    """
    width = jnp.maximum(high - low + 1, 0)
    drawn = jax.random.uniform(jax.random.key(0), (kv_heads, low.shape[1], count))
    ids = -jnp.sort(-jnp.where(width > 0, low + (drawn * width).astype(jnp.int32), -1), axis=-1)
    again = jnp.pad(ids[..., 1:] == ids[..., :-1], ((0, 0), (0, 0), (1, 0)))
    return -jnp.sort(-jnp.where(again, -1, ids), axis=-1)
