"""The indexer of the learned router: a few narrow heads that score every past token."""

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.learned_router import Index
from subq_jax.axes import Keys, Queries
from subq_jax.model.logical_axes import named_param

INDEX_HEADS = 4  # they share the router's width, so that an index costs what a router of that width does


class TokenIndexer(nnx.Module):
    """Maps attention queries and keys to an `Index`; its gradient stops at its input."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, router_dim: int, *, param_dtype,
                 rngs: nnx.Rngs):
        if router_dim % INDEX_HEADS:
            raise ValueError(f"router_dim must be a multiple of {INDEX_HEADS} index heads, got {router_dim}")
        group, width = num_heads // num_kv_heads, router_dim // INDEX_HEADS

        def kernel(shape, fan_in, *names):
            return named_param(nnx.initializers.normal(fan_in**-0.5)(rngs.params(), shape, param_dtype), *names)

        inputs, names = (num_kv_heads, group, head_dim), ("heads", None, "head_dim", None, "router")
        self.query = kernel((*inputs, INDEX_HEADS, width), group * head_dim, *names)
        self.weight = kernel((*inputs, INDEX_HEADS), group * head_dim, *names[:4])
        self.key = kernel((num_kv_heads, head_dim, width), head_dim, "heads", "head_dim", "router")

    def __call__(self, q: Queries, k: Keys) -> Index:
        """The index of q [B, T, N, H] and k [B, S, K, H]."""
        q, k = jax.lax.stop_gradient((q, k))
        groups = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
        query, weight, key = (x[...].astype(q.dtype) for x in (self.query, self.weight, self.key))
        return Index(
            jnp.einsum("btkgh,kghir->btkir", groups, query), jnp.einsum("btkgh,kghi->btki", groups, weight),
            jnp.einsum("bskh,khr->bskr", k, key))
