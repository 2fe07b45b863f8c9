"""Attention of every query to every visible key, in plain XLA: a chunk of queries at a time, recomputed backward."""

import functools

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.layout import fold_keys, fold_queries, map_query_chunks, repeat_heads, unfold_queries
from subq_jax.kernels.xla.tile import tile_forward
from subq_jax.selection.visibility import QueryPlace

CPU_ELEMENTS, ACCELERATOR_ELEMENTS = 2 << 20, 1 << 26  # float32 logits held at a time, if that leaves MIN_ROWS queries
MIN_ROWS = 16


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


def visible_keys(place: QueryPlace, length: int):
    """Which of `length` positions dense attention shows to each query: bool [B, T, S]."""
    key = jnp.arange(length)[None, None]
    visible = (key >= place.first_position[..., None]) & (key <= place.position[..., None])
    return visible & place.exists[..., None]


def chunk_rows(elements_of_a_query: int) -> int:
    """How many queries to handle at a time, when each needs so many float32 numbers."""
    elements = CPU_ELEMENTS if jax.default_backend() == "cpu" else ACCELERATOR_ELEMENTS
    return max(MIN_ROWS, elements // elements_of_a_query)
