"""Meshes, sharding rules and the start of multi-host runs."""

from subq_jax.parallel.distributed import maybe_initialize_distributed
from subq_jax.parallel.mesh import MESH_AXES, parse_mesh
from subq_jax.parallel.sharding import (
    activation_mesh,
    batch_divisor,
    batch_sharding,
    logical_spec,
    put_batch,
    replicated,
    state_shardings,
)

__all__ = [
    "MESH_AXES",
    "activation_mesh",
    "batch_divisor",
    "batch_sharding",
    "logical_spec",
    "maybe_initialize_distributed",
    "parse_mesh",
    "put_batch",
    "replicated",
    "state_shardings",
]
