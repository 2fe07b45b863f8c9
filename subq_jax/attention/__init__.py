"""The attention mechanisms as pure functions, one file each."""

from subq_jax.attention.api import selective_attention
from subq_jax.attention.block_mean import block_mean_attention
from subq_jax.attention.dense import dense_attention
from subq_jax.attention.distillation import router_divergence
from subq_jax.attention.global_token import global_token_attention
from subq_jax.attention.learned_router import learned_router_attention
from subq_jax.attention.oracle_topk import oracle_topk_attention
from subq_jax.attention.random_blocks import random_blocks_attention
from subq_jax.attention.sliding_window import sliding_window_attention

__all__ = [
    "block_mean_attention",
    "dense_attention",
    "global_token_attention",
    "learned_router_attention",
    "oracle_topk_attention",
    "random_blocks_attention",
    "router_divergence",
    "selective_attention",
    "sliding_window_attention",
]
