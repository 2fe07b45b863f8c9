"""Attention of every query to every visible key, in plain XLA: a chunk of queries at a time, recomputed backward."""

import functools

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.grain import grain
from subq_jax.kernels.xla.layout import (
    fold_keys,
    fold_queries,
    map_query_chunks,
    repeat_heads,
    unfold_queries,
    vary_alike,
)
from subq_jax.kernels.xla.tile import NO_KEYS, merge, tile_forward
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys

MIN_ROWS = 16  # queries of a chunk at least, whatever they hold


def whole_attention(q, place: QueryPlace, k, v):
    """Causal attention of q [B, T, N, H] at `place` over all of k and v [B, S, K, H]: [B, T, N, H] in `q`'s dtype."""
    batch, kv_heads = q.shape[0], k.shape[2]
    k, v = fold_keys(k), fold_keys(v)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(args):
        q, place = args
        visible = repeat_heads(visible_keys(place, k.shape[1]), kv_heads)[:, :, None]
        out, _ = tile_forward(fold_queries(q, kv_heads), k, v, 0.0, visible)
        return unfold_queries(out, batch).astype(q.dtype)

    return map_query_chunks(chunk, (q, place), chunk_rows(batch * q.shape[2] * k.shape[1]))


def cached_attention(q, place: QueryPlace, present, k, v):
    """`whole_attention` of a few queries, where `present` [B, S] says which keys exist; the others may hold anything.

    Clearing absent keys, or laying heads out apart, would write a copy of the cache for every token decoded: both is
    done to a tile of keys at a time.
    """
    (batch, length, kv_heads, _), size = k.shape, grain().keys
    q, place, present, k, v = vary_alike((q, place, present, k, v))
    rows = fold_queries(q, kv_heads)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tile(found, index):
        start = jnp.minimum(index * size, length - size)  # the last tile reaches back, over keys that are done
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        keys, values = (fold_keys(clear_absent_keys(part(x), part(present))) for x in (k, v))
        fresh = start + jnp.arange(size) >= index * size
        visible = repeat_heads(visible_keys(place, size, start) & fresh[None, None], kv_heads)[:, :, None]
        return merge([found, tile_forward(rows, keys, values, 0.0, visible)]), None

    nothing = jnp.zeros_like(rows, jnp.float32), jnp.full_like(rows, NO_KEYS, jnp.float32, rows.shape[:-1])
    (out, _), _ = jax.lax.scan(tile, nothing, jnp.arange(-(-length // size), dtype=jnp.int32))
    return unfold_queries(out, batch).astype(q.dtype)


def visible_keys(place: QueryPlace, length: int, first=0):
    """Which of `length` positions from `first` on dense attention shows to each query: bool [B, T, length]."""
    key = first + jnp.arange(length)[None, None]
    visible = (key >= place.first_position[..., None]) & (key <= place.position[..., None])
    return visible & place.exists[..., None]


def chunk_rows(elements_of_a_query: int) -> int:
    """How many queries to handle at a time, when each needs so many float32 numbers."""
    return max(MIN_ROWS, grain().whole // elements_of_a_query)
