"""Programs of selective attention compiled for TPUs that need not be there; libtpu does that on any machine."""

import contextlib
import functools
import importlib.util
import os
import re
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subq_jax import SelectionConfig, selective_attention
from subq_jax.kernels.tpu.roofline import CHIPS
from subq_jax.selection.tree import SummaryTree

HEAD_DIM, ROUTER_DIM = 128, 64
CONFIG = SelectionConfig(block_size=64, num_blocks=29, local_blocks=2, sink_blocks=1)
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
assert set(TOPOLOGIES) == set(CHIPS)


def why_not() -> str | None:
    """Why nothing can be compiled for TPUs here; None where it can."""
    return None if importlib.util.find_spec("libtpu") else "libtpu is not installed: pip install -e .[tpu]"


def devices_of(topology: str) -> list:
    """The devices of a TPU topology that need not be there."""
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):  # nothing is opened that two processes could not share
        os.environ.setdefault(name, value)
    return list(get_topology_desc(platform="tpu", topology_name=topology).devices)


def compile_for(topology: str, function, shapes, dtype=jnp.bfloat16):
    """`function` of arrays, compiled for one device of a TPU topology; a bare tuple in `shapes` has type `dtype`."""
    mesh = Mesh(np.array(devices_of(topology)[:1]), ("device",))
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(*((x, dtype) if isinstance(x, tuple) else (x.shape, x.dtype)), sharding=whole)
              for x in shapes]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",)).compile()


def compile_kernels(topology: str, function, shapes, dtype=jnp.bfloat16) -> dict:
    """The Pallas kernels of `function` by name, each a program of its own with the arguments that `function` gives it.

    That takes seconds, where the whole takes a minute: the sorts between the kernels are what XLA compiles slowly.
    """
    mesh = Mesh(np.array(devices_of(topology)[:1]), ("device",))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jaxpr = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(x, dtype) for x in shapes))
    return {call.params["name"]: compile_for(
        topology, functools.partial(call.primitive.bind, **call.params), [x.aval for x in call.invars])
        for call in _kernel_calls(jaxpr.jaxpr)}


def _kernel_calls(jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _kernel_calls(getattr(inner, "jaxpr", inner))


@contextlib.contextmanager
def no_fall_back() -> Iterator[None]:
    """Inside, selective attention that would run as `xla` raises a UserWarning that says why."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", 'implementation="tpu" falls back')
        yield


def shapes_of(length: int, heads: int, kv_heads: int):
    """The shapes of q, k, v, router_q and router_k of one sequence."""
    return [(1, length, n, width) for n, width in (
        (heads, HEAD_DIM), (kv_heads, HEAD_DIM), (kv_heads, HEAD_DIM), (kv_heads, ROUTER_DIM), (kv_heads, ROUTER_DIM))]


def forward(*arrays, gate: bool = True):
    """Selective attention by the TPU's kernels."""
    return selective_attention(*arrays, CONFIG, gate=gate, implementation="tpu")


def gradient(*arrays, gate: bool = True):
    """Its gradients in all five arrays."""
    return jax.grad(lambda *x: forward(*x, gate=gate).astype(jnp.float32).sum(), argnums=range(5))(*arrays)


def decode_shapes_of(batch: int, length: int, heads: int, kv_heads: int):
    """The shapes of `decode`'s arrays: `batch` caches of `length` positions, a query of each."""
    return [*((batch, tokens, n, width) for tokens, n, width in (
        (1, heads, HEAD_DIM), (length, kv_heads, HEAD_DIM), (length, kv_heads, HEAD_DIM),
        (1, kv_heads, ROUTER_DIM), (length, kv_heads, ROUTER_DIM))),
        (batch, kv_heads, length // CONFIG.block_size, ROUTER_DIM)]


def decode(*arrays, gate: bool = True, implementation: str = "tpu"):
    """A decoding step's attention: queries, keys, values, router's queries and keys, and the blocks' summaries."""
    *arrays, summaries = arrays
    return selective_attention(*arrays, CONFIG, gate=gate, tree=SummaryTree((summaries,)),
                               implementation=implementation)


def planned(compiled) -> dict[str, int]:
    """Bytes of HBM that the compiler plans for a program: `argument`, `output`, `temp`."""
    memory = compiled.memory_analysis()
    return {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "temp")}


def vmem_of_kernels(text: str) -> dict[str, int]:
    """Bytes of VMEM that each Pallas kernel takes, from a compiled program's text."""
    found = {}
    for line in text.splitlines():
        size = re.search(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', line)
        name = re.search(r"%(?:transpose_|jvp_)*(\w+?)_*\.?\d* = ", line)
        if "tpu_custom_call" in line and size and name:
            found[name.group(1)] = int(size.group(1))
    return found
