"""What the GPU's kernels take, and why not the rest."""

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.selective import unsupported_cache
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs

BLOCK_SIZES, HEAD_DIMS, MAX_ROUTER_DIM = (32, 64, 128), (64, 128), 256
HALF_PRECISION = jnp.bfloat16, jnp.float16
DENSE_BLOCK = 64  # positions that dense decoding reads at a time
MAX_GROUP = 32  # rows of a token: two warps' products, half the rows of a step along keys
MAX_CHOSEN = 128  # blocks of a query: its list must have room for them and another tile's
MULTIPROCESSORS = 132  # of an H100 or H200
CAPABILITY = "9.0"  # Hopper: the kernels use instructions that neither older nor newer chips have
MAX_BLOCKS = 2**19  # of a sequence: int32 names one together with the 12 warps of a tile
MAX_PAIRS = 2**31 - 2**20  # of a token and a block it sees: int32 numbers them


def on_hopper() -> bool:
    """Whether the default device is a GPU that these kernels run on."""
    return jax.default_backend() == "gpu" and jax.devices()[0].compute_capability == CAPABILITY


def unsupported(inputs: SelectiveInputs, config: SelectionConfig) -> str | None:
    """Why the kernels do not take these arrays; None when they do."""
    if jax.default_backend() == "gpu" and (capability := jax.devices()[0].compute_capability) != CAPABILITY:
        return f"the GPU must have compute capability {CAPABILITY}, got {capability}"
    (heads, head_dim), router_dim = inputs.q.shape[2:], inputs.router_q.shape[3]
    group = heads // inputs.k.shape[2]
    if inputs.q.dtype not in HALF_PRECISION or inputs.router_q.dtype not in HALF_PRECISION:
        return f"dtypes must be bfloat16 or float16, got {inputs.q.dtype} and {inputs.router_q.dtype}"
    if head_dim not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}, got {head_dim}"
    if config.block_size not in BLOCK_SIZES:
        return f"block_size must be one of {BLOCK_SIZES}, got {config.block_size}"
    if group > MAX_GROUP:
        return f"query heads of a KV head must be at most {MAX_GROUP}, got {group}"
    if config.num_blocks > MAX_CHOSEN:
        return f"num_blocks must be at most {MAX_CHOSEN}, got {config.num_blocks}"
    if router_dim % 64 or router_dim > MAX_ROUTER_DIM:
        return f"router_dim must be a multiple of 64 up to {MAX_ROUTER_DIM}, got {router_dim}"
    if (blocks := -(-inputs.k.shape[1] // config.block_size)) > MAX_BLOCKS:
        return f"blocks of a sequence must be at most {MAX_BLOCKS}, got {blocks}"
    pairs = inputs.q.shape[1] * (config.num_blocks + config.local_blocks + config.sink_blocks)
    if pairs > MAX_PAIRS:
        return f"queries times the blocks that each sees must be at most {MAX_PAIRS}, got {pairs}"
    return unsupported_cache(inputs, config)


def decodes_densely(q, k) -> bool:
    """Whether `decode.py` does dense attention of queries q [B, T, N, H] to a cache k [B, S, K, H].

    On one device only: the compiler cannot shard a Pallas kernel, and dense attention has no `attend_sharded`.
    """
    fits = q.dtype in HALF_PRECISION and q.shape[3] in HEAD_DIMS and q.shape[2] // k.shape[2] <= MAX_GROUP
    whole = q.shape[1] == 1 and k.shape[1] % DENSE_BLOCK == 0
    return fits and whole and jax.device_count() == 1 and on_hopper()
