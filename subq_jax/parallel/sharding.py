"""Where each array lives: from logical axis names to the axes of the mesh."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Names without a rule ("head_dim", "router", None) stay whole on every device.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


_ACTIVATION_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("activation_mesh", default=None)


@contextlib.contextmanager
def activation_mesh(mesh: Mesh) -> Iterator[None]:
    """While a function is traced inside, its activations and its kernels' work are laid out on `mesh`.

    Enter it inside of a jitted function: it is read while that is traced, and is no part of jit's cache key.

    Raises:
      ValueError: for a mesh without the axes that `parse_mesh` gives one.
    """
    if missing := {axis for axes in RULES.values() for axis in axes} - set(mesh.axis_names):
        raise ValueError(f"mesh must have axes {sorted(missing)}, as parse_mesh gives it, got {mesh.axis_names}")
    token = _ACTIVATION_MESH.set(mesh)
    try:
        yield
    finally:
        _ACTIVATION_MESH.reset(token)


def active_mesh() -> Mesh | None:
    """The mesh of the `activation_mesh` around this call; None without one."""
    return _ACTIVATION_MESH.get()


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Tells the compiler where an activation lives, one logical name for each dimension; elsewhere the identity."""
    mesh = active_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, logical_spec(names, x.shape, mesh)))


def logical_spec(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The partition of an array of `shape` whose dimensions carry the logical `names`.

    A dimension that its mesh axes do not divide is replicated (one KV head on `tensor:2`), and so is one whose mesh
    axis an earlier dimension already took.

    Raises:
      ValueError: when there is not one name for each dimension.
    """
    if len(names) != len(shape):
        raise ValueError(f"logical axes must name each of the {len(shape)} dimensions of {tuple(shape)}, got {names!r}")
    taken: set[str] = set()
    entries = []
    for name, size in zip(names, shape, strict=True):
        axes = RULES.get(name, ())
        if axes and not taken & set(axes) and size % math.prod(mesh.shape[axis] for axis in axes) == 0:
            taken.update(axes)
            entries.append(axes if len(axes) > 1 else axes[0])
        else:
            entries.append(None)
    return PartitionSpec(*entries)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Shardings for a tree that holds `nnx.State`s: parameters, or a whole training state.

    An optimiser's moments are Variables with their parameter's metadata, so they are sharded like it. Arrays without
    logical names (steps, counters) are replicated.

    Args:
      state: a tree of `nnx.Variable`s and arrays; abstract ones will do.
      mesh: the mesh of the run.

    Returns:
      The same tree with a `NamedSharding` for each array.
    """

    def one(leaf):
        if not isinstance(leaf, nnx.Variable):
            return replicated(mesh)
        value, names = leaf.get_value(), leaf.get_metadata().get("out_sharding")
        spec = PartitionSpec() if names is None else logical_spec(names, value.shape, mesh)
        return jax.tree.map(lambda _: NamedSharding(mesh, spec), leaf)

    return jax.tree.map(one, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def check_mesh_is_used(shardings: Any, mesh: Mesh) -> None:
    """Refuses a mesh whose devices would all do the same work along some axis.

    Args:
      shardings: from `state_shardings`.
      mesh: the mesh of the run.

    Raises:
      ValueError: naming the axis of size above 1 that neither the batch nor any parameter is cut along.
    """
    specs = [sharding.spec for sharding in jax.tree.leaves(shardings)]
    used = {axis for spec in specs for entry in spec if entry for axis in np.atleast_1d(entry)} | set(RULES["batch"])
    if idle := [f"{axis}:{size}" for axis, size in mesh.shape.items() if size > 1 and axis not in used]:
        raise ValueError(f"mesh axis {', '.join(idle)} divides no parameter of this model: its devices would all do "
                         f"the same work. Take a divisor of its heads, MLP width or vocabulary, or another axis")


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sequences spread over the mesh's `data` and `fsdp` axes; each sequence stays whole."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_divisor(mesh: Mesh) -> int:
    """The number of shares a global batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's share of a batch, each [B, T] with B spread over the mesh."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(x)) for name, x in batch.items()}
