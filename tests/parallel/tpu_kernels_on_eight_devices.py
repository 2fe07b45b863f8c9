"""`implementation="tpu"`, interpreted, on meshes of 8 devices: run by `test_tpu_kernels.py` in a process of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from interpreted import interpreted_kernels
from jax.sharding import PartitionSpec
from problems import arrays, value_and_grads

from subq_jax import SelectionConfig, selective_attention
from subq_jax.parallel import activation_mesh, parse_mesh

CONFIG = SelectionConfig(block_size=4, num_blocks=2, local_blocks=2, sink_blocks=1)
CASES = (  # mesh, KV heads, query heads of each, axes that the output's sequences and heads are cut along
    ("data:4,tensor:2", 2, 2, ("data", None, "tensor")),
    ("data:4,tensor:2", 1, 4, ("data", None, "tensor")),  # every device has the KV head
    ("fsdp:2,tensor:4", 2, 4, ("fsdp",)),  # query heads would be parted from their KV heads
)


def main():
    for text, kv_heads, group, cut in CASES:
        values, mesh = arrays(0, 4, 32, 32, kv_heads, group), parse_mesh(text)
        with interpreted_kernels(), activation_mesh(mesh):
            out, selection, grads = jax.block_until_ready(value_and_grads(values, CONFIG, "tpu", True))
        assert tuple(out.sharding.spec) == cut, out.sharding
        expected, expected_selection, expected_grads = value_and_grads(values, CONFIG, "reference", True)
        np.testing.assert_array_equal(selection, expected_selection, err_msg=text)
        for found, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=text)
    shards_of_the_callers_own()


def shards_of_the_callers_own():
    """Inside of `jax.shard_map` arrays are shards already; sequences differ in documents, a tree chooses."""
    values, mesh = arrays(0, 8, 32, 32, 1, 2), parse_mesh("data:8")
    config = dataclasses.replace(CONFIG, fanouts=(2,), beam_width=2)
    documents = jnp.repeat(jnp.arange(32)[None] // 16, 8, axis=0) * (jnp.arange(8)[:, None] > 2)
    attend = lambda implementation: lambda documents, *values: selective_attention(
        *values, config, segment_ids=documents, implementation=implementation)

    def sharded(nested):
        shards = PartitionSpec("data")
        with activation_mesh(mesh):
            function = attend("tpu")
            if nested:
                function = jax.shard_map(function, mesh=mesh, in_specs=shards, out_specs=shards, check_vma=False)
            return function(documents, *values)

    expected = attend("reference")(documents, *values)
    for nested in (False, True):
        with interpreted_kernels():
            out = jax.block_until_ready(jax.jit(sharded, static_argnums=0)(nested))
        np.testing.assert_allclose(out, expected, atol=2e-5, err_msg=f"nested: {nested}")


if __name__ == "__main__":
    main()
