"""The dense attention that others are timed against: on a TPU the kernel that JAX ships, elsewhere this package's."""

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

from subq_jax.attention import dense_attention

LANES, BLOCK = 128, 1024  # a larger block does not fit the VMEM of every generation
LONGEST = 1 << 18  # the mask of twice as many tokens would take the host a quarter of an hour


def dense_kernel(platform: str, head_dim: int):
    """The name of causal dense attention on a platform, and the function of q [B, T, N, H] and k, v [B, T, K, H]."""
    if platform == "tpu" and head_dim % LANES == 0:
        return "jax splash attention", splash_attention
    return "subq_jax dense_attention", dense_attention


def splash_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention [B, T, N, H] by `jax.experimental.pallas.ops.tpu.splash_attention`.

    Raises:
      NotImplementedError: for lengths that it does not take, or not in reasonable time.
    """
    (batch, length, heads, head_dim), kv_heads = q.shape, k.shape[2]
    block = min(BLOCK, length)
    if length % block or block % LANES:
        raise NotImplementedError(
            f"splash attention takes multiples of {BLOCK} tokens, or fewer in multiples of {LANES}, got {length}")
    if length > LONGEST:
        raise NotImplementedError(
            f"splash attention takes at most {LONGEST} tokens, for its mask is made on the host, got {length}")
    attend = jax.vmap(jax.vmap(_kernel(length, heads // kv_heads, block)))
    group = lambda x: x.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    out = attend(group(q * head_dim**-0.5), k.swapaxes(1, 2), v.swapaxes(1, 2))
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _kernel(length: int, group: int, block: int):
    mask = splash_attention_mask.MultiHeadMask([_mask(length)] * group)
    parts = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
             "block_q_dq", "block_kv_dq")
    sizes = splash.BlockSizes(**dict.fromkeys(parts, block))
    return splash.make_splash_mqa_single_device(mask, block_sizes=sizes)


@functools.cache
def _mask(length: int):
    return splash_attention_mask.CausalMask((length, length))
