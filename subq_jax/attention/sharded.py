"""Kernels on several devices: each works on its own shard of sequences and heads."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from subq_jax.axes import Outputs, Selection
from subq_jax.parallel.sharding import active_mesh, logical_spec
from subq_jax.selection.inputs import SelectiveInputs

Attend = Callable[[SelectiveInputs], tuple[Outputs, Selection]]


def attend_sharded(attend: Attend, inputs: SelectiveInputs) -> tuple[Outputs, Selection]:
    """`attend(inputs)`, inside of `activation_mesh` by every device for its own shard.

    The compiler cannot shard a Pallas kernel, so that it is done here: sequences over the axes of "batch", query heads
    over that of "heads" together with their KV heads. A single KV head goes to every device, and its gradients are
    summed; several that the mesh does not divide are computed whole on each. Inside of a `jax.shard_map` of the
    caller's own the arrays are shards already.
    """
    mesh = active_mesh()
    if mesh is None or mesh.size == 1 or jax.sharding.get_abstract_mesh().manual_axes:
        return attend(inputs)
    kv_heads = inputs.k.shape[2]
    batch_axes, head_axis = logical_spec(("batch", "heads"), (inputs.q.shape[0], inputs.q.shape[2]), mesh)
    kv_axis = logical_spec(("heads",), (kv_heads,), mesh)[0]
    if kv_axis is None and kv_heads > 1:
        head_axis = None  # a query head must find its KV head beside it
    query_spec, key_spec = (PartitionSpec(batch_axes, None, axis) for axis in (head_axis, kv_axis))
    specs = SelectiveInputs(
        q=query_spec, k=key_spec, v=key_spec, router_q=key_spec, tree=PartitionSpec(batch_axes, kv_axis),
        place=PartitionSpec(batch_axes), present=PartitionSpec(batch_axes), selection=key_spec)
    # The kernels do not say over which axes their outputs vary, hence no check.
    sharded = jax.shard_map(attend, mesh=mesh, in_specs=(specs,), out_specs=(query_spec, key_spec), check_vma=False)
    return sharded(inputs)
