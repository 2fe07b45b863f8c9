"""Attention of every query to every visible key, in plain XLA: a chunk of queries at a time, recomputed backward."""

import functools

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.layout import fold_keys, fold_queries, map_query_chunks, repeat_heads, unfold_queries
from subq_jax.kernels.xla.tile import tile_forward
from subq_jax.selection.visibility import QueryPlace

CHUNK_ELEMENTS = 2 << 20  # float32 logits held at a time, where that leaves MIN_ROWS queries a chunk
MIN_ROWS = 16


def whole_attention(q, place: QueryPlace, k, v):
    """Causal attention of q [B, T, N, H] at `place` over all of k and v [B, S, K, H]: [B, T, N, H] in `q`'s dtype."""
    batch, kv_heads = q.shape[0], k.shape[2]
    k, v = fold_keys(k), fold_keys(v)
    key = jnp.arange(k.shape[1])[None, None]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(args):
        q, place = args
        visible = (key >= place.first_position[..., None]) & (key <= place.position[..., None])
        visible = repeat_heads(visible & place.exists[..., None], kv_heads)[:, :, None]
        out, _ = tile_forward(fold_queries(q, kv_heads), k, v, 0.0, visible)
        return unfold_queries(out, batch).astype(q.dtype)

    rows = max(MIN_ROWS, CHUNK_ELEMENTS // (batch * q.shape[2] * k.shape[1]))
    return map_query_chunks(chunk, (q, place), rows)
