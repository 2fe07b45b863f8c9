"""The mechanisms as Flax modules: drop-ins for `nnx.MultiHeadAttention` in anyone's model.

Each class takes the constructor arguments of `nnx.MultiHeadAttention`, keeps its parameter names, and is called the
same way, as causal self-attention:

    attention = SelectiveAttention(num_heads=8, in_features=512, num_kv_heads=1, rngs=nnx.Rngs(0))
    y = attention(x)                                    # x, y [..., T, D]

With `init_cache` and `decode=True` a call takes one or more further tokens. Linen models use
`flax.nnx.bridge.to_linen(SelectiveAttention, ...)`.
"""

from subq_jax.model.attention_modules.causal import CausalAttention, ChosenBlocks
from subq_jax.model.attention_modules.chosen_blocks import (
    BlockMeanAttention,
    OracleTopkAttention,
    RandomBlocksAttention,
)
from subq_jax.model.attention_modules.dense import DenseAttention
from subq_jax.model.attention_modules.global_token import GlobalTokenAttention
from subq_jax.model.attention_modules.learned_router import LearnedRouterAttention
from subq_jax.model.attention_modules.selective import SelectiveAttention
from subq_jax.model.attention_modules.sliding_window import SlidingWindowAttention
from subq_jax.model.attention_modules.warm_up import DivergenceLoss

__all__ = [
    "BlockMeanAttention",
    "CausalAttention",
    "ChosenBlocks",
    "DenseAttention",
    "DivergenceLoss",
    "GlobalTokenAttention",
    "LearnedRouterAttention",
    "OracleTopkAttention",
    "RandomBlocksAttention",
    "SelectiveAttention",
    "SlidingWindowAttention",
]
