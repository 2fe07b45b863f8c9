"""Attention keeps its types inside of a `jax.shard_map` that checks over which mesh axes an array varies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("compared", [("xla",), pytest.param((), marks=pytest.mark.slow)])  # or all
def test_outputs_and_gradients_are_those_of_shards_that_are_not_checked(compared):
    """On simulated devices, whose number is fixed when jax starts: in a process of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "attention")]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"}
    script = Path(__file__).with_name("callers_shards_on_two_devices.py")
    done = subprocess.run([sys.executable, str(script), *compared], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
