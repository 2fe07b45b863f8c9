"""The online softmax (Milakov and Gimelshein, arXiv 1805.02867) of the kernels that attend, in powers of 2."""

import math

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.registers import by_row, constant
from subq_jax.kernels.gpu.tensor_core import ACC, ROWS

UNSEEN, FLOOR = -1e30, -1e29  # the gate of a block that is not seen, and the running maximum before the first that is
LOG2E = math.log2(math.e)


def softmax_start(rows: int, head_dim: int):
    """The state of an online softmax before the first step: sums [rows, H], `top` and `norm` [rows]."""
    return constant(0, (rows, head_dim), ACC), constant(FLOOR, (rows,), ROWS), constant(0, (rows,), ROWS)


def softmax_step(logits, scale: float, gate, top, norm):
    """A step of the online softmax.

    Args:
      logits: float32 [rows, keys]; times `scale` they are powers of 2, as are the following.
      gate: float32 [rows], or one for all.
      top, norm: float32 [rows], the largest logit so far and the sum of weights relative to it.

    Returns:
      the step's weights [rows, keys], what earlier sums shrink by, and the new `top` and `norm`.
    """
    new = jnp.maximum(top, logits.max(axis=1) * scale + gate)
    shrink = jnp.exp2(top - new)
    weights = jnp.exp2(logits * scale - by_row(new - gate, logits))
    return weights, shrink, new, norm * shrink + weights.sum(axis=1)


def softmax_end(sums, top, norm):
    """Outputs [rows, H] and log-sum-exps [rows] of an online softmax; 0 and about -7e28 where nothing was seen."""
    norm = jnp.where(norm > 0, norm, jnp.float32(1))
    return sums * by_row(1 / norm, sums), (top + jnp.log2(norm)) * (1 / LOG2E)


def hide_later(logits, positions, first):
    """-inf where a key, the first at position `first`, comes after its row's position."""
    key = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=ACC) + first
    return jnp.where(key <= by_row(positions, logits), logits, -jnp.inf)
