"""The module of `dense`."""

from subq_jax.attention.dense import dense_attention
from subq_jax.model.attention_modules.causal import CausalAttention


class DenseAttention(CausalAttention):
    """Full causal attention."""

    def attend(self, q, kept, place):
        return dense_attention(q, kept["key"], kept["value"], **place)
