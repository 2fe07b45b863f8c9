"""Meshes written as text: `--mesh=data:2,fsdp:4`."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

MESH_AXES = ("data", "fsdp", "tensor")


def parse_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh that `spec` names, for instance `"data:2,fsdp:4"`; `""` is one device.

    The mesh always has all of `MESH_AXES`, those not named with size 1, so that the sharding rules need no cases.
    `data` replicates the parameters, `fsdp` shards them along the model width, `tensor` along heads, MLP and
    vocabulary.

    Args:
      spec: comma-separated `axis:size` pairs whose sizes multiply to the number of devices.
      devices: devices to use; all of `jax.devices()` by default.

    Raises:
      ValueError: for an unknown or repeated axis, a size that is not a positive integer, sizes that do not multiply to
        the number of devices, or `""` on several hosts.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not spec.strip():
        if jax.process_count() > 1:
            raise ValueError(f"mesh must be given on several hosts: sizes that multiply to {len(devices)} devices")
        devices = devices[:1]
    sizes = dict.fromkeys(MESH_AXES, 1) | _parse_sizes(spec)
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"mesh sizes must multiply to the {len(devices)} devices present, got {spec!r}")
    shape = tuple(sizes[axis] for axis in MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def _parse_sizes(spec: str) -> dict[str, int]:
    sizes = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        axis, separator, size = part.partition(":")
        if axis not in MESH_AXES:
            raise ValueError(f"mesh axis must be one of {MESH_AXES}, got {axis!r} in {spec!r}")
        if axis in sizes:
            raise ValueError(f"mesh axis {axis!r} is given twice in {spec!r}")
        if not separator or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh must read axis:size with sizes >= 1, got {part!r} in {spec!r}")
        sizes[axis] = int(size)
    return sizes
