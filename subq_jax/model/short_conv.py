"""A short causal convolution on keys: what a token can be found by includes the tokens right before it.

With it a value is found by the key that stands before it, without a layer that moves the key there first; without it
a two-layer model takes far longer to learn associative recall. Source: short convolutions on keys as in H3 (arXiv
2212.14052) and its successors.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.axes import SegmentIds
from subq_jax.model.logical_axes import named_param
from subq_jax.selection.visibility import document_starts


class ShortConvolution(nnx.Module):
    """y[t] = sum over w < width of kernel[w] * x[t - w], per channel, within a document; starts as a plain sum."""

    def __init__(self, heads: int, features: int, width: int, *, param_dtype):
        self.heads, self.features, self.width = heads, features, width
        self.kernel = named_param(jnp.full((width, heads, features), width**-0.5, param_dtype), None, "heads", None)
        self.cached_tail: nnx.Cache | None = nnx.data(None)

    def taps(self, dtype):
        """The kernel [width, K, H]."""
        return self.kernel[...].astype(dtype)

    def __call__(self, x, *, segment_ids: SegmentIds | None = None, decode: bool = False):
        """Convolves x [B, T, K, H] along T; with `decode` the tokens before come from the cache."""
        length, past = x.shape[1], self.width - 1
        if decode:
            joined = jnp.concatenate([self.cached_tail[...].astype(x.dtype), x], axis=1)
            self.cached_tail[...] = joined[:, length:].astype(self.cached_tail.dtype)
        else:
            joined = jnp.pad(x, ((0, 0), (past, 0), (0, 0), (0, 0)))
        if segment_ids is not None:  # not by equal ids: a later document may have an earlier one's
            reach = jnp.arange(length)[None] - document_starts(segment_ids)
        kernel = self.taps(x.dtype)
        total = jnp.zeros_like(x)
        for back in range(self.width):
            part = joined[:, past - back : past - back + length] * kernel[back][None, None]
            if segment_ids is not None and back:
                part = jnp.where((reach >= back)[..., None, None], part, 0)
            total += part
        return total

    def init_cache(self, batch: int, dtype) -> None:
        """Makes an empty cache of the last `width - 1` tokens."""
        self.cached_tail = nnx.Cache(jnp.zeros((batch, self.width - 1, self.heads, self.features), dtype))


class RunningMean(ShortConvolution):
    """A token's own features and the mean of the last `width` tokens', mixed: (1 - share) * x[t] + share * mean.

    Nothing is learned; before a document's start stand zeros.
    """

    def __init__(self, heads: int, features: int, width: int, share: float = 1.0):
        self.heads, self.features, self.width, self.share = heads, features, width, share
        self.cached_tail: nnx.Cache | None = nnx.data(None)

    def taps(self, dtype):
        mean = jnp.full((self.width, self.heads, self.features), self.share / self.width, dtype)
        return mean.at[0].add(1 - self.share)


class LearnedMean(ShortConvolution):
    """A mean of the last `width` tokens' features whose weights every channel learns.

    The weights are positive and add up to 1, so that non-negative features stay so; they start as `RunningMean`'s,
    whose `share` must be above 0 here. Before a document's start stand zeros.
    """

    SPEED = 4.0  # logits per unit of kernel: kernels move by hundredths in training, logits should by tenths

    def __init__(self, heads: int, features: int, width: int, share: float = 1.0, *, param_dtype):
        super().__init__(heads, features, width, param_dtype=param_dtype)
        mean = RunningMean(heads, features, width, share).taps(param_dtype)
        self.kernel[...] = jnp.log(mean) / self.SPEED

    def taps(self, dtype):
        """The weights [width, K, R]."""
        return jax.nn.softmax(self.SPEED * self.kernel[...], axis=0).astype(dtype)
