"""Parameters whose axes carry logical names ("embed", "heads", "mlp", "vocab", "router") for `subq_jax.parallel`.

The names are this package's and not those of a mesh, so flax must not place an array by them when it is made.
"""

from collections.abc import Callable

import jax
from flax import nnx


def named_param(value: jax.Array, *names: str | None) -> nnx.Param:
    """A parameter with one logical name, or None, for each axis of `value`."""
    return nnx.Param(value, out_sharding=names, eager_sharding=False)


def named_init(init: Callable, *names: str | None) -> Callable:
    """The initializer `init`, making parameters with one logical name, or None, for each axis."""
    return nnx.with_partitioning(init, names, eager_sharding=False)
