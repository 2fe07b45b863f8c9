"""Kernels on several devices: each works on its own sequences and heads, which need nothing from each other."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from subq_jax.axes import Outputs, Selection
from subq_jax.parallel.sharding import active_mesh, logical_spec
from subq_jax.selection.inputs import SelectiveInputs

Attend = Callable[[SelectiveInputs], tuple[Outputs, Selection]]


def on_own_share(attend: Attend, inputs: SelectiveInputs) -> tuple[Outputs, Selection]:
    """`attend(inputs)`, inside of `activation_mesh` by every device for its own share.

    The compiler cannot split a Pallas kernel, so that the split is made here: sequences over the axes of "batch", query
    heads over that of "heads" together with their KV heads; a single KV head goes to every device. What the mesh does
    not divide is whole on each.
    """
    mesh = active_mesh()
    if mesh is None or mesh.size == 1:
        return attend(inputs)
    kv_heads = inputs.k.shape[2]
    sequences, heads = logical_spec(("batch", "heads"), (inputs.q.shape[0], inputs.q.shape[2]), mesh)
    of_kv = logical_spec(("heads",), (kv_heads,), mesh)[0]
    if of_kv is None and kv_heads > 1:
        heads = None  # a query head must find its KV head beside it
    of_queries, of_keys = (PartitionSpec(sequences, None, of) for of in (heads, of_kv))
    specs = SelectiveInputs(
        q=of_queries, k=of_keys, v=of_keys, router_q=of_keys, tree=PartitionSpec(sequences, of_kv),
        place=PartitionSpec(sequences), present=PartitionSpec(sequences), selection=of_keys)
    # The kernels do not say over which axes their outputs vary, hence no check.
    shares = jax.shard_map(attend, mesh=mesh, in_specs=(specs,), out_specs=(of_queries, of_keys), check_vma=False)
    return shares(inputs)
