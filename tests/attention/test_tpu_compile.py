"""The TPU's kernels compile for real chips at production shapes; libtpu does that on a machine without a TPU."""

import importlib.util

import jax.numpy as jnp
import pytest

from experiments.tpu_programs import compile_for, forward, gradient, shapes_of, vmem_of_kernels
from subq_jax.kernels.tpu.roofline import CHIPS

pytestmark = [
    pytest.mark.tpu_compile, pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")]

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
KERNELS = {"best_blocks", "attend_listed_blocks", "backward_queries", "backward_keys"}
VMEM = 16 * 2**20  # what every generation gives a kernel without being asked


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 1), (32, 4)])
def test_every_kernel_compiles_and_fits(chip, heads, kv_heads):
    compiled = compile_for(TOPOLOGIES[chip], gradient, shapes_of(131072, heads, kv_heads))
    memory = compiled.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert whole < CHIPS[chip].memory / CHIPS[chip].devices
    vmem = vmem_of_kernels(compiled.as_text())
    assert set(vmem) == KERNELS
    assert max(vmem.values()) < VMEM


@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_float32_compiles(chip):
    compile_for(TOPOLOGIES[chip], forward, shapes_of(8192, 16, 1), jnp.float32)
