"""What one layer of attention is given to do in a benchmark, as the flags ask for it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmark import DTYPE, HEAD_DIM, HEADS, KV_HEADS, ROUTER_DIM
from experiments.trained_inputs import trained_inputs

INPUTS = flags.DEFINE_enum("inputs", "random", ["random", "walk", "trained", "uniform"], "What attention is given.")
TRAINED_RUN = flags.DEFINE_string("trained_run", None, "Folder of a finished training run, for --inputs=trained.")
LAYER = flags.DEFINE_integer("layer", -1, "Which of its selective layers, -1 for the last.")

PIECE = 1 << 20  # tokens drawn at a time
SHARING = 16  # neighbours who share most of their router's query in a walk


def input_shapes(length: int) -> list[tuple[int, ...]]:
    """Shapes of q, k, v, router_q, router_k of one sequence."""
    heads = (HEADS.value, KV_HEADS.value, KV_HEADS.value, KV_HEADS.value, KV_HEADS.value)
    widths = (HEAD_DIM.value,) * 3 + (ROUTER_DIM.value,) * 2
    return [(1, length, n, width) for n, width in zip(heads, widths, strict=True)]


@functools.lru_cache(maxsize=1)
def make_inputs(length: int) -> tuple[jax.Array, ...]:
    """q, k, v, router_q, router_k as `--inputs` says; random router features are non-negative as a trained model's.

    Raises:
      ValueError: for a trained run that has no such inputs, or in other shapes than the flags'.
    """
    if INPUTS.value == "trained":
        values = trained_inputs(Path(TRAINED_RUN.value), length, LAYER.value)
        found = [(x.shape, x.dtype.name) for x in values]
        if found != (wanted := [(shape, DTYPE.value) for shape in input_shapes(length)]):
            raise ValueError(f"--trained_run has inputs {found}, and the flags ask for {wanted}")
        return values
    keys = jax.random.split(jax.random.key(length), 5)
    values = list(map(_normal, keys, input_shapes(length)))
    if INPUTS.value == "walk":
        shared = jax.random.normal(jax.random.key(0), (1, -(-length // SHARING), *values[3].shape[2:]))
        values[3] += 2 * jnp.repeat(shared, SHARING, axis=1)[:, :length].astype(values[3].dtype)
    return *values[:3], *map(jax.nn.softplus, values[3:])


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers [1, T, ...], drawn piece by piece: the generator's temporaries of 12 million would not fit."""
    if shape[1] <= PIECE:
        return jax.random.normal(key, shape, jnp.dtype(DTYPE.value))
    drawn = jax.lax.map(lambda key: _normal(key, (1, PIECE, *shape[2:])), jax.random.split(key, -(-shape[1] // PIECE)))
    return drawn.reshape(1, -1, *shape[2:])[:, : shape[1]]
