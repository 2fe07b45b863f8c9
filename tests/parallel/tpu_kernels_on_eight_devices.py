"""`implementation="tpu"`, interpreted, on 4 x 2 devices: run by `test_tpu_kernels.py` in a process of its own."""

import jax
import numpy as np
from interpreted import interpreted_kernels
from jax.sharding import PartitionSpec
from problems import arrays

from subq_jax import SelectionConfig, selective_attention

CONFIG = SelectionConfig(block_size=4, num_blocks=2, local_blocks=2, sink_blocks=1)


def main():
    values = arrays(0, 4, 32, 32, 2, 2)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shards = PartitionSpec("data", None, "tensor", None)
    attend = lambda *x: selective_attention(*x, CONFIG, implementation="tpu")
    with interpreted_kernels():
        out = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=shards, out_specs=shards, check_vma=False))(*values)
        jax.block_until_ready(out)
    assert len(out.sharding.device_set) == 8
    expected = selective_attention(*values, CONFIG, implementation="reference")
    np.testing.assert_allclose(out, expected, atol=2e-5)


if __name__ == "__main__":
    main()
