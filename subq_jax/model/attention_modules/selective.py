"""The module of `selective` and `gated_mean`: a router, and a cache that holds its keys and their summaries."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.api import selective_attention
from subq_jax.attention.dense import dense_attention
from subq_jax.attention.distillation import router_divergence
from subq_jax.checks import check_integer, check_learned_window, check_share
from subq_jax.model.attention_modules.causal import CausalAttention
from subq_jax.model.attention_modules.warm_up import DivergenceLoss, check_phase
from subq_jax.model.router import Router
from subq_jax.model.short_conv import LearnedMean, RunningMean
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import num_key_blocks
from subq_jax.selection.tree import SummaryTree, build_tree, update_tree


class SelectiveAttention(CausalAttention):
    """Selective attention with a non-negative router on its own queries and keys.

    `selection` sets block size and budget, `router_dim` the width R of the router. Of a router query a part
    `router_share` is the mean of the last `router_window` tokens', so that neighbours choose alike (default 1 token:
    none); with `router_learns_window` every channel goes on from there to a mean of its own. `router_tied` keeps one
    matrix for all query heads and keys. `gate` and `implementation` are those of `subq_jax.selective_attention`. The
    gate trains the router by the model's loss; a call with `distil=True` also keeps a `DivergenceLoss` of the router
    alone, which trains it without a gate or beside it.

    `phase` of a call is one of `PHASES`: `"sparse"`; `"gated"`, the warm-up in which every candidate block is selected,
    so that all receive a gradient; `"dense"`, plain dense attention, in which attention learns undisturbed.
    """

    def __init__(self, num_heads, in_features, *args, selection: SelectionConfig | None = None, router_dim: int = 64,
                 router_window: int = 1, router_share: float = 1.0,
                 router_learns_window: bool = False, router_tied: bool = True, gate: bool = True,
                 implementation: str | None = None, rngs: nnx.Rngs, **options):
        check_integer("router_dim", router_dim, 1)
        check_integer("router_window", router_window, 1)
        check_share("router_share", router_share)
        check_learned_window(router_learns_window, router_window, router_share)
        super().__init__(num_heads, in_features, *args, rngs=rngs, **options)
        self.selection = SelectionConfig() if selection is None else selection
        self.router_dim, self.gate, self.implementation = router_dim, gate, implementation
        untied_heads = 0 if router_tied else self.num_heads // self.num_kv_heads
        self.router = Router(self.num_kv_heads, self.head_dim, router_dim, self.selection, untied_heads,
                             param_dtype=self.param_dtype, rngs=rngs)
        self.router_mean = nnx.data(None)
        if router_window > 1:
            sizes = self.num_kv_heads, router_dim, router_window, router_share
            if router_learns_window:
                self.router_mean = LearnedMean(*sizes, param_dtype=self.param_dtype)
            else:
                self.router_mean = RunningMean(*sizes)
        self.cached_router_key: nnx.Cache | None = nnx.data(None)
        self.cached_summaries = nnx.List([])  # of each level of the tree, the blocks' first

    def init_cache(self, input_shape, dtype=jnp.float32):
        self._init_caches(input_shape, dtype, key=self.head_dim, value=self.head_dim, router_key=self.router_dim)
        if self.router_mean is not None:
            self.router_mean.init_cache(self.cached_key.shape[0], dtype)
        tree = build_tree(self.cached_router_key[...], self.selection)
        self.cached_summaries = nnx.List([nnx.Cache(level) for level in tree.levels])

    def route(self, q, k, *, segment_ids=None, decode: bool = False):
        """Router queries and keys, [B, T, K, R] each, of q [B, T, N, H] and k [B, T, K, H]."""
        router_q, router_k = self.router(q, k)
        if self.router_mean is not None:
            router_q = self.router_mean(router_q, segment_ids=segment_ids, decode=decode)
        return router_q, router_k

    def project_further(self, q, k, v, *, segment_ids, decode):
        router_q, router_k = self.route(q, k, segment_ids=segment_ids, decode=decode)
        return {"key": k, "value": v, "router_key": router_k}, {"router_q": router_q}

    def extend_cache(self, new):
        """Appends keys, values and router keys, and pools the summaries above them anew."""
        kept, place = super().extend_cache(new)
        start, count = place["q_offset"], new["key"].shape[1]
        tree = SummaryTree(tuple(level[...] for level in self.cached_summaries))
        tree = update_tree(tree, self.cached_router_key[...], self.selection, start, count)
        for level, summaries in zip(self.cached_summaries, tree.levels, strict=True):
            level[...] = summaries
        dtype = new["router_key"].dtype
        return kept, place | {"tree": jax.tree.map(lambda x: x.astype(dtype), tree)}

    def attend(self, q, kept, place, *, router_q, phase: str = "sparse", distil: bool = False):
        check_phase(phase)
        if distil:
            q_fixed, k_fixed = jax.lax.stop_gradient((q, kept["key"]))
            router = self.route(q_fixed, k_fixed, segment_ids=place.get("segment_ids"))
            loss = router_divergence(q_fixed, k_fixed, *router, self.selection, **place)
            self.sow(DivergenceLoss, "divergence", loss)
        if phase == "dense" or (phase == "gated" and not self.gate):
            return dense_attention(q, kept["key"], kept["value"], **place)
        selection = covering(self.selection, kept["key"].shape[1]) if phase == "gated" else self.selection
        return self.keep_selection(*selective_attention(
            q, kept["key"], kept["value"], router_q, kept["router_key"], selection, gate=self.gate,
            implementation=self.implementation, **place, return_selection=True))


def covering(selection: SelectionConfig, length: int) -> SelectionConfig:
    """The same selection with as many blocks as `length` tokens have, and so without need of a tree."""
    blocks = num_key_blocks(length, selection.block_size)
    return dataclasses.replace(selection, num_blocks=blocks, fanouts=())
