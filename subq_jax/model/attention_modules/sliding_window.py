"""The module of `sliding_window`, and of the decoder's local layers."""

import jax.numpy as jnp

from subq_jax.attention.sliding_window import sliding_window_attention
from subq_jax.checks import check_integer
from subq_jax.model.attention_modules.causal import CausalAttention


class SlidingWindowAttention(CausalAttention):
    """Attention to the last `window` positions; its cache holds no more than those."""

    def __init__(self, *args, window: int, **options):
        check_integer("window", window, 1)
        super().__init__(*args, **options)
        self.window = window

    def init_cache(self, input_shape, dtype=jnp.float32):
        *lead, length, features = input_shape
        super().init_cache((*lead, min(length, self.window), features), dtype)

    @property
    def rolls(self):
        return self.cached_key.shape[1] >= self.window

    def extend_cache(self, new):
        """Appends to the last `window` keys; slots before the first token are marked as absent."""
        index, kept = self.cache_index[...], {}
        for name, value in new.items():
            cache = getattr(self, f"cached_{name}")
            joined = jnp.concatenate([cache[...], value.astype(cache.dtype)], axis=1)
            capacity, cache[...] = cache.shape[1], joined[:, value.shape[1]:]
            kept[name] = joined.astype(value.dtype)
        return kept, {"first_key": jnp.maximum(capacity - index, 0)}

    def attend(self, q, kept, place):
        return sliding_window_attention(q, kept["key"], kept["value"], self.window, **place)
