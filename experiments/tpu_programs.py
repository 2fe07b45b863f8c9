"""Programs of selective attention compiled for TPUs that need not be there; libtpu does that on any machine."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subq_jax import SelectionConfig, selective_attention

HEAD_DIM, ROUTER_DIM = 128, 64
CONFIG = SelectionConfig(block_size=64, num_blocks=29, local_blocks=2, sink_blocks=1)


def compile_for(topology: str, function, shapes, dtype=jnp.bfloat16):
    """`function` of arrays of `shapes`, compiled for one device of a TPU topology that need not be there."""
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(name, value)
    device = get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    mesh = Mesh(np.array([device]), ("device",))
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape in shapes]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",)).compile()


def shapes_of(length: int, heads: int, kv_heads: int):
    """The shapes of q, k, v, router_q and router_k of one sequence."""
    return [(1, length, n, width) for n, width in (
        (heads, HEAD_DIM), (kv_heads, HEAD_DIM), (kv_heads, HEAD_DIM), (kv_heads, ROUTER_DIM), (kv_heads, ROUTER_DIM))]


def forward(*arrays):
    """Selective attention by the TPU's kernels."""
    return selective_attention(*arrays, CONFIG, implementation="tpu")


def gradient(*arrays):
    """Its gradients in all five arrays."""
    return jax.grad(lambda *x: forward(*x).astype(jnp.float32).sum(), argnums=range(5))(*arrays)


def vmem_of_kernels(text: str) -> dict[str, int]:
    """Bytes of VMEM that each Pallas kernel takes, from a compiled program's text."""
    found = {}
    for line in text.splitlines():
        size = re.search(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', line)
        name = re.search(r"%(?:transpose_|jvp_)*(\w+?)_*\.?\d* = ", line)
        if "tpu_custom_call" in line and size and name:
            found[name.group(1)] = int(size.group(1))
    return found
