"""Arrays in the registers of a warpgroup."""

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu


def by_row(x, like):
    """[rows] -> [rows, n]; a number stays one."""
    return lax.broadcast_in_dim(x, like.shape, [0]) if x.ndim else x


def constant(value, shape, layout, dtype=jnp.float32):
    """The same number everywhere."""
    return plgpu.layout_cast(jnp.full(shape, value, dtype), layout)
