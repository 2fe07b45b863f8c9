"""What the GPU's kernels take, and why not the rest."""

import jax
import jax.numpy as jnp

from subq_jax.kernels.gpu.tile import TILE
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs

BLOCK_SIZES, HEAD_DIMS, MAX_GROUP, MAX_CHOSEN = (32, 64, 128), (64, 128), 32, 128
MAX_ROUTER_DIM = 256
CAPABILITY = "9.0"  # Hopper: the kernels use instructions that neither older nor newer chips have
MAX_PAIRS = 2**31 - 2**20  # of a token and a block it sees: int32 numbers them


def unsupported(inputs: SelectiveInputs, config: SelectionConfig) -> str | None:
    """Why the kernels do not take these arrays; None when they do."""
    if jax.default_backend() == "gpu" and (capability := jax.devices()[0].compute_capability) != CAPABILITY:
        return f"the GPU must have compute capability {CAPABILITY}, got {capability}"
    (heads, head_dim), kv_heads, width = inputs.q.shape[2:], inputs.k.shape[2], inputs.router_q.shape[3]
    halves = (jnp.bfloat16, jnp.float16)
    if inputs.q.dtype not in halves or inputs.router_q.dtype not in halves:
        return f"dtypes must be bfloat16 or float16, got {inputs.q.dtype} and {inputs.router_q.dtype}"
    if head_dim not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {head_dim}"
    if config.block_size not in BLOCK_SIZES:
        return f"block_size must be one of {BLOCK_SIZES}, got {config.block_size}"
    if heads // kv_heads > MAX_GROUP:
        return f"query heads of a KV head must be at most {MAX_GROUP}, got {heads // kv_heads}"
    if config.num_blocks > MAX_CHOSEN:
        return f"num_blocks must be at most {MAX_CHOSEN}, got {config.num_blocks}"
    if width % 64 or width > MAX_ROUTER_DIM:
        return f"router_dim must be a multiple of 64 up to {MAX_ROUTER_DIM}, got {width}"
    pairs = inputs.q.shape[1] * (config.num_blocks + config.local_blocks + config.sink_blocks)
    if pairs > MAX_PAIRS:
        return f"queries times the blocks that each sees must be at most {MAX_PAIRS}, got {pairs}"
    return None


def tokens_of_tile(group: int) -> int:
    """Tokens whose heads fill a tile; a group is filled up to a power of 2, and to the 8 rows that a copy can place."""
    return TILE // max(8, 1 << (group - 1).bit_length())


