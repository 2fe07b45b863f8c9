"""What the TPU's kernels take, and why not the rest."""

import jax.numpy as jnp

from subq_jax.kernels.tpu.choose import ChoiceSizes
from subq_jax.kernels.tpu.tile import LANES, VMEM, AttendSizes, Slots
from subq_jax.kernels.xla.selective import few_queries, unsupported_cache
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs

MAX_SLOTS = 256  # blocks that a query sees: their ids are compared with every block of its tile


def unsupported(inputs: SelectiveInputs, config: SelectionConfig) -> str | None:
    """Why the kernels do not take these arrays; None when they do."""
    (heads, head_dim), kv_heads = inputs.q.shape[2:], inputs.k.shape[2]
    group, itemsize = heads // kv_heads, inputs.q.dtype.itemsize
    rows = {jnp.dtype(jnp.float32): 8, jnp.dtype(jnp.bfloat16): 16}
    if inputs.q.dtype not in rows or inputs.router_q.dtype not in rows:
        return f"dtypes must be float32 or bfloat16, got {inputs.q.dtype} and {inputs.router_q.dtype}"
    if head_dim % LANES:
        return f"head_dim must be a multiple of {LANES}, got {head_dim}"
    if config.block_size % rows[inputs.q.dtype]:
        return f"block_size must be a multiple of {rows[inputs.q.dtype]} in {inputs.q.dtype}, got {config.block_size}"
    if LANES % group:
        return f"query heads of a KV head must divide {LANES}, got {group}"
    if reason := unsupported_cache(inputs, config):
        return reason
    slots = config.sink_blocks + config.local_blocks + config.num_blocks
    if slots > MAX_SLOTS:
        return f"a query must see at most {MAX_SLOTS} blocks, got {slots}"
    router, router_type = inputs.router_q.shape[-1], inputs.router_q.dtype
    needed = ChoiceSizes().vmem(router, router_type.itemsize, config.num_blocks)
    if needed > VMEM:
        return (f"choosing must fit {VMEM >> 20} MiB of VMEM, got {needed / 2**20:.0f} MiB for router_dim={router} "
                f"in {router_type}")
    sizes = AttendSizes().fit(group, head_dim, itemsize)
    few = few_queries(inputs.q.shape[1], inputs.k.shape[1], config)
    rows_of_block = config.block_size * (kv_heads if few else 1)  # a cache's blocks hold all heads
    needed = sizes.vmem(group, head_dim, itemsize, rows_of_block, Slots(slots, 0, router).lanes)
    if needed > VMEM:
        heads_of_block = f" of {kv_heads} KV heads" if few else ""
        return (f"a kernel must fit {VMEM >> 20} MiB of VMEM, got {needed / 2**20:.0f} MiB for head_dim={head_dim}, "
                f"block_size={config.block_size}{heads_of_block} and {group} query heads of a KV head")
    return None
