"""The module of `global_token`."""

import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.global_token import Slots, global_token_attention, update_slots
from subq_jax.checks import check_integer
from subq_jax.model.attention_modules.causal import CausalAttention
from subq_jax.model.logical_axes import named_param
from subq_jax.selection.summaries import num_key_blocks


class GlobalTokenAttention(CausalAttention):
    """Attention to the last `window` positions and to `num_slots` learned summaries of the blocks before."""

    def __init__(self, *args, window: int, num_slots: int, block_size: int, rngs: nnx.Rngs, **options):
        for name, value in (("window", window), ("num_slots", num_slots), ("block_size", block_size)):
            check_integer(name, value, 1)
        super().__init__(*args, rngs=rngs, **options)
        self.window, self.block_size = window, block_size
        shape = (num_slots, self.num_kv_heads, self.head_dim)
        self.slot_query = named_param(
            nnx.initializers.normal(1.0)(rngs.params(), shape, self.param_dtype), None, "heads", "head_dim")
        self.cached_slots = nnx.List([])  # keys and values of every block's summary

    def init_cache(self, input_shape, dtype=jnp.float32):
        super().init_cache(input_shape, dtype)
        batch, length, *heads = self.cached_key.shape
        shape = (batch, num_key_blocks(length, self.block_size), *heads)
        self.cached_slots = nnx.List([nnx.Cache(jnp.zeros(shape, dtype)) for _ in Slots._fields])

    def extend_cache(self, new):
        """Appends keys and values, and summarises the blocks that they stand in anew."""
        kept, place = super().extend_cache(new)
        slots = update_slots(
            Slots(*(x[...].astype(new["key"].dtype) for x in self.cached_slots)), kept["key"], kept["value"],
            self.slot_query[...], self.block_size, place["q_offset"], new["key"].shape[1])
        for cache, x in zip(self.cached_slots, slots, strict=True):
            cache[...] = x.astype(cache.dtype)
        return kept, place | {"slots": slots}

    def attend(self, q, kept, place):
        return global_token_attention(
            q, kept["key"], kept["value"], self.slot_query[...], self.window, self.block_size, **place)
