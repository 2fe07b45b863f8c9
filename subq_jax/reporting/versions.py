"""What stands at the end of every report: the versions, the machine, the day and the command that made it."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import jax

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Name to version of this process's programs and libraries, its machine and device, the time and the command."""
    device = jax.devices()[0]
    return {"python": platform.python_version(), "subq_jax": _own_version()} | {
        name: importlib.metadata.version(name) for name in _LIBRARIES} | {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "device": f"{device.platform} ({device.device_kind})",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])}


def _own_version() -> str:
    try:
        return importlib.metadata.version("subq_jax")
    except importlib.metadata.PackageNotFoundError:
        return "run from a folder, not installed"
