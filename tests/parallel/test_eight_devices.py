"""Eight simulated devices give the loss and gradients of one. The number of devices is fixed when jax starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_meshes_of_eight_devices_give_the_single_device_step():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        # Compilation is most of the time, and speed of the compiled code does not matter here.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    script = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss differs by") == 2
