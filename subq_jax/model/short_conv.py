"""A short causal depthwise convolution: every token sees its last few neighbours before it attends.

Helps recall in shallow models, where a key and its value are neighbouring tokens (H3, arXiv 2212.14052).
"""

import jax.numpy as jnp
from flax import nnx

from subq_jax.axes import Activations, SegmentIds


class ShortConvolution(nnx.Module):
    """y[t] = sum over w < width of kernel[w] * x[t - w], per channel, within a document; starts as the identity."""

    def __init__(self, features: int, width: int, *, dtype, rngs: nnx.Rngs):
        del rngs  # starts as the identity
        self.features, self.width, self.dtype = features, width, dtype
        identity = jnp.zeros((width, features)).at[0].set(1.0)
        self.kernel = nnx.Param(identity, out_sharding=(None, "embed"), eager_sharding=False)
        self.cached_tail: nnx.Cache | None = nnx.data(None)

    def __call__(self, x: Activations, *, segment_ids: SegmentIds | None = None, decode: bool = False) -> Activations:
        """Convolves x [B, T, D] along T; with `decode` the tokens before come from the cache."""
        length, past = x.shape[1], self.width - 1
        if decode:
            joined = jnp.concatenate([self.cached_tail[...], x], axis=1)
            self.cached_tail[...] = joined[:, length:]
        else:
            joined = jnp.pad(x, ((0, 0), (past, 0), (0, 0)))
        kernel = self.kernel[...].astype(self.dtype)
        total = jnp.zeros_like(x)
        for back in range(self.width):
            part = joined[:, past - back : past - back + length] * kernel[back]
            if segment_ids is not None and back:
                same = jnp.pad(segment_ids[:, back:] == segment_ids[:, :-back], ((0, 0), (back, 0)))
                part = jnp.where(same[..., None], part, 0)
            total += part
        return total

    def init_cache(self, batch: int) -> None:
        """Makes an empty cache of the last `width - 1` tokens."""
        self.cached_tail = nnx.Cache(jnp.zeros((batch, self.width - 1, self.features), self.dtype))
