"""One summary vector per key block: what the router compares a query with."""

import math

import jax
import jax.numpy as jnp

from subq_jax.axes import RouterKeys, Summaries


def num_key_blocks(length: int, block_size: int) -> int:
    """Blocks of `length` tokens, the last one possibly partial."""
    return -(-length // block_size)


def split_blocks(x, block_size: int):
    """[B, S, K, R] -> [B, K, NB, c, R] of any width R, zeros after the last token."""
    batch, length, heads, width = x.shape
    blocks = num_key_blocks(length, block_size)
    x = jnp.pad(x, ((0, 0), (0, blocks * block_size - length), (0, 0), (0, 0)))
    return x.reshape(batch, blocks, block_size, heads, width).transpose(0, 3, 1, 2, 4)


def block_summaries(router_k: RouterKeys, block_size: int, pooling: str) -> Summaries:
    """Pools router keys [B, S, K, R] over the tokens of each block: [B, K, NB, R] in `router_k`'s dtype.

    Reduces in float32 and rounds once. The gradient of max pooling goes wholly to the lowest-index maximal token of
    each channel, and is written as a mask, so that no scatter is needed. A partial last block is pooled over zeros
    too: it is never a candidate, so its summary is never read.
    """
    return pool(split_blocks(router_k, block_size), pooling)


def pool(parts, pooling: str):
    """Pools [..., n, c, R] over c, in float32, rounded to the dtype of `parts`: [..., n, R]."""
    return _largest(parts) if pooling == "max" else parts.mean(axis=-2, dtype=jnp.float32).astype(parts.dtype)


@jax.custom_jvp
def _largest(parts):
    return parts.max(axis=-2)


@_largest.defjvp
def _largest_jvp(primals, tangents):
    (parts,), (change,) = primals, tangents
    first = jnp.argmax(parts, axis=-2, keepdims=True)
    member = jax.lax.broadcasted_iota(first.dtype, parts.shape, parts.ndim - 2)
    return _largest(parts), jnp.where(member == first, change, 0).sum(axis=-2)


def score_scale(router_dim: int) -> float:
    """The factor 1 / sqrt(R) of every router score."""
    return 1.0 / math.sqrt(router_dim)
