"""The attention mechanisms as pure functions, one file each."""

from subq_jax.attention.api import selective_attention
from subq_jax.attention.block_mean import block_mean_attention
from subq_jax.attention.dense import dense_attention
from subq_jax.attention.sliding_window import sliding_window_attention

__all__ = ["block_mean_attention", "dense_attention", "selective_attention", "sliding_window_attention"]
