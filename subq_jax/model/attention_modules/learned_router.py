"""The module of `learned_router`: an indexer, and a cache that holds its keys."""

import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.dense import dense_attention
from subq_jax.attention.learned_router import index_divergence, learned_router_attention
from subq_jax.model.attention_modules.causal import CausalAttention
from subq_jax.model.attention_modules.warm_up import DivergenceLoss, check_phase
from subq_jax.model.indexer import INDEX_HEADS, TokenIndexer
from subq_jax.selection.config import SelectionConfig


class LearnedRouterAttention(CausalAttention):
    """Tokens chosen by an indexer over every past token; `selection` is in tokens, `router_dim` the index's width.

    The indexer learns by its `DivergenceLoss` alone; every `phase` but `"sparse"` is dense attention.
    """

    def __init__(self, num_heads, in_features, *args, selection: SelectionConfig, router_dim: int = 64,
                 rngs: nnx.Rngs, **options):
        super().__init__(num_heads, in_features, *args, rngs=rngs, **options)
        self.selection = selection
        self.indexer = TokenIndexer(num_heads, self.num_kv_heads, self.head_dim, router_dim,
                                    param_dtype=self.param_dtype, rngs=rngs)
        self.index_width = router_dim // INDEX_HEADS
        self.cached_index_key: nnx.Cache | None = nnx.data(None)

    def init_cache(self, input_shape, dtype=jnp.float32):
        self._init_caches(input_shape, dtype, key=self.head_dim, value=self.head_dim, index_key=self.index_width)

    def project_further(self, q, k, v, *, segment_ids, decode):
        index = self.indexer(q, k)
        return {"key": k, "value": v, "index_key": index.key}, {"index": index}

    def attend(self, q, kept, place, *, index, phase: str = "sparse", distil: bool = False):
        check_phase(phase)
        index = index._replace(key=kept["index_key"])
        if distil:
            loss = index_divergence(q, kept["key"], index, self.selection, **place)
            self.sow(DivergenceLoss, "divergence", loss)
        if phase != "sparse":
            return dense_attention(q, kept["key"], kept["value"], **place)
        return self.keep_selection(*learned_router_attention(
            q, kept["key"], kept["value"], index, self.selection, **place, return_selection=True))
