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
from subq_jax.kernels.gpu.limits import MULTIPROCESSORS
from subq_jax.kernels.gpu.selective import (
    Tiles,
    a_tile_at_least,
    choose_flat,
    lay_out,
    tile_shape,
)
from subq_jax.kernels.xla.layout import fold_keys
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
      the parts by name, those of `PARTS`. `worked_flops` of attention counts two products of a token's rows with all
      keys of its blocks; `union` is the blocks that a tile of `tile_tokens` reads over those of one of its tokens.
    """
    q, k, v, router_q, router_k = values
    heads, block = q.shape[2] // k.shape[2], config.block_size
    shape = tile_shape(heads, config)
    place, present = locate(q, k, None, None, None, block)

    pool = lambda router_k: build_tree(router_k, config).levels[0]
    summaries = jax.jit(pool)(router_k)
    choose = lambda router_q, summaries: choose_flat(router_q, summaries, place, config)
    chosen, scores = jax.jit(choose)(router_q, summaries)
    if uniform:
        chosen = uniform_choice(*candidate_range(place, config), config.num_blocks, k.shape[2])
        scores = jnp.zeros(chosen.shape)

    lay = lambda *x: lay_out(config, *x, place, present)
    tiles = Tiles(*jax.jit(lay)(q, k, v, chosen, scores))
    listed = (tiles.lists.ids >= 0).sum(dtype=jnp.float32)
    entries, tokens = tiles.blocks.entries, shape.tokens
    facts = {"union": float(entries.sum(dtype=jnp.float32) / listed * tokens), "tile_tokens": float(tokens),
             "worked_flops": float(4 * q.shape[3] * shape.group * block * listed)}

    forward = lambda *x: attend(*x, shape=shape, ctas=MULTIPROCESSORS)
    out, lse = jax.jit(forward)(*tiles)
    delta = jax.jit(row_delta)(out, out)
    backward = lambda *x: backward_queries(*x, shape=shape, ctas=MULTIPROCESSORS)
    weights = jnp.zeros(tiles.lists.ids.shape)
    invert = lambda lists, weights: inverse_lists(lists, weights, tiles.k.shape[1] // block, block, MULTIPROCESSORS)
    inverse = jax.jit(invert)(tiles.lists, weights)
    backward_inverse = lambda *x: backward_keys(*x, shape.group, block, MULTIPROCESSORS)
    rows = a_tile_at_least(fold_keys(router_q), shape)
    return {
        "summaries": Part(pool, (router_k,), {}),
        "choice": Part(choose, (router_q, summaries), {}),
        "lists": Part(lay, (q, k, v, chosen, scores), {}),
        "attention": Part(forward, tuple(tiles), facts),
        "backward_queries": Part(backward, (tiles.q, out, lse, delta, *tiles[1:]), {}),
        "inverse": Part(invert, (tiles.lists, weights), {}),
        "backward_keys": Part(
            backward_inverse, (tiles.q, out, lse, delta, rows, tiles.k, tiles.v, inverse, tiles.offset), {}),
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
