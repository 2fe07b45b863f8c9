"""The TPU's kernels on several chips: inside `activation_mesh`, sequences and heads apart."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from experiments.tpu_programs import TOPOLOGIES, devices_of, forward, gradient, vmem_of_kernels, why_not
from subq_jax.parallel import activation_mesh, logical_spec, parse_mesh

AXES = "batch", None, "heads", None  # of q, k, v, router_q, router_k
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.tpu_compile
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize(("chip", "function"), [
    ("v5e", forward), *(pytest.param(chip, gradient, marks=pytest.mark.slow) for chip in TOPOLOGIES)])
def test_kernels_compile_for_four_devices(chip, function):
    mesh = parse_mesh("data:2,tensor:2", devices_of(TOPOLOGIES[chip])[:4])
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, logical_spec(AXES, shape, mesh)))
              for shape in ((2, 2048, heads, width) for heads, width in (
                  (16, 128), (2, 128), (2, 128), (2, 64), (2, 64)))]

    def shared(*arrays):
        with activation_mesh(mesh):
            return function(*arrays)

    compiled = jax.jit(shared).trace(*arrays).lower(lowering_platforms=("tpu",)).compile()
    text = compiled.as_text()
    assert "attend_listed_blocks" in vmem_of_kernels(text)
    collectives = "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"
    assert not any(name in text for name in collectives), "chips wait for others"


@pytest.mark.slow
def test_shards_equal_the_reference():
    """Interpreted on simulated devices, whose number is fixed when jax starts: in a process of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "attention")]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"}
    script = Path(__file__).with_name("tpu_kernels_on_eight_devices.py")
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
