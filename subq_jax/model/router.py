"""The router of selective attention: non-negative features of the attention's own queries and keys.

    features(x) = softplus(x W)
    router_q = mean over the head group of features(q)          router_k = features(k) - center

`W` is shared by queries and keys, so that whatever attention has learned to match also scores high, from the first step
on; the gate then sharpens it. With a `W` for each query head they only start shared: every head goes on with its own,
as keys do. Router queries are non-negative, so a max-pooled summary bounds every token of its block from above. The
learned `center` starts at what the summary of a block of unrelated tokens is expected to be, so that an average block's
gate is near 0 instead of far above every logit. It moves all candidates of a query equally and leaves their ranking
alone. It is taken from the keys, where it keeps numbers small: as a channel of its own, one large number against the
sum of the others, it cost half precision a third of a nat (docs/experiments/selector_log.md).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.axes import Keys, Queries, RouterKeys, RouterQueries
from subq_jax.model.logical_axes import named_param
from subq_jax.selection.config import SelectionConfig

SHARPNESS = 3.0  # standard deviation of the pre-activations at the start: sharp enough to be nearly sparse


class Router(nnx.Module):
    """Maps attention queries and keys to router queries and keys of `router_dim` channels.

    `untied_heads`, the query heads G of a KV head, gives each a matrix of its own, `query_kernel` [K, G, H, R]; 0 ties
    all to that of the keys, `kernel` [K, H, R].
    """

    def __init__(self, num_kv_heads: int, head_dim: int, router_dim: int, selection: SelectionConfig,
                 untied_heads: int = 0, *, param_dtype, rngs: nnx.Rngs):
        init = nnx.initializers.normal(SHARPNESS * head_dim**-0.5)
        self.kernel = named_param(
            init(rngs.params(), (num_kv_heads, head_dim, router_dim), param_dtype), "heads", "head_dim", "router")
        self.query_kernel = nnx.data(None)
        if untied_heads:
            shared = jnp.broadcast_to(self.kernel[...][:, None], (num_kv_heads, untied_heads, head_dim, router_dim))
            self.query_kernel = named_param(shared, "heads", None, "head_dim", "router")
        self.center = named_param(
            jnp.full((num_kv_heads, router_dim), expected_summary(selection), param_dtype), "heads", "router")

    def __call__(self, q: Queries, k: Keys) -> tuple[RouterQueries, RouterKeys]:
        """Router queries [B, T, K, R] and router keys [B, T, K, R] of q [B, T, N, H] and k [B, T, K, H]."""
        batch, length, heads, head_dim = q.shape
        kernel, center = self.kernel[...].astype(q.dtype), self.center[...].astype(q.dtype)
        groups = q.reshape(batch, length, k.shape[2], heads // k.shape[2], head_dim)
        if self.query_kernel is None:
            matched = jnp.einsum("btkgh,khr->btkgr", groups, kernel)
        else:
            matched = jnp.einsum("btkgh,kghr->btkgr", groups, self.query_kernel[...].astype(q.dtype))
        router_q = jax.nn.softplus(matched).mean(axis=3)
        router_k = jax.nn.softplus(jnp.einsum("btkh,khr->btkr", k, kernel)) - center[None, None]
        return router_q, router_k


def expected_summary(selection: SelectionConfig) -> float:
    """A block's summary at the start, if its tokens are unrelated.

    Of max pooling about the largest of `c` independent pre-activations, sqrt(2 ln c) less 0.5 at small c; of mean
    pooling the mean of the softplus of one.
    """
    if selection.pooling == "mean":
        return 0.465 * SHARPNESS
    block_size = selection.block_size
    return SHARPNESS * max(0.5, math.sqrt(2 * math.log(block_size)) - 0.5)
