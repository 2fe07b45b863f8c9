"""Rotary position embedding (RoFormer, arXiv 2104.09864)."""

import jax.numpy as jnp


def apply_rope(x, position, base: float):
    """Rotates pairs of features of x [B, T, N, H] by angles that grow with `position` [T]; H is even.

    Pairs are (i, i + H/2); angles and rotation are computed in float32.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[:, None] * frequency[None]
    cos, sin = (f(angle)[None, :, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return rotated.astype(x.dtype)
