"""The mechanisms as Flax modules: drop-ins for `nnx.MultiHeadAttention` in anyone's model.

Each class takes the constructor arguments of `nnx.MultiHeadAttention`, keeps its parameter names, and is called the
same way, as causal self-attention:

    attention = SelectiveAttention(num_heads=8, in_features=512, num_kv_heads=1, rngs=nnx.Rngs(0))
    y = attention(x)                                    # x, y [..., T, D]

With `init_cache` and `decode=True` a call takes one or more further tokens. Linen models use
`flax.nnx.bridge.to_linen(SelectiveAttention, ...)`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.api import selective_attention
from subq_jax.attention.block_mean import block_mean_attention
from subq_jax.attention.checks import check_integers
from subq_jax.attention.dense import dense_attention
from subq_jax.attention.distillation import router_divergence
from subq_jax.attention.global_token import Slots, global_token_attention, update_slots
from subq_jax.attention.learned_router import index_divergence, learned_router_attention
from subq_jax.attention.mechanisms import PHASES
from subq_jax.attention.oracle_topk import oracle_topk_attention
from subq_jax.attention.random_blocks import random_blocks_attention
from subq_jax.attention.sliding_window import sliding_window_attention
from subq_jax.axes import Activations, SegmentIds
from subq_jax.checks import check_integer, check_share
from subq_jax.model.indexer import INDEX_HEADS, TokenIndexer
from subq_jax.model.rope import apply_rope
from subq_jax.model.router import TiedRouter
from subq_jax.model.short_conv import RunningMean, ShortConvolution
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import num_key_blocks
from subq_jax.selection.tree import SummaryTree, build_tree, update_tree


class CausalAttention(nnx.MultiHeadAttention):
    """What the mechanisms share: projections, optional QK-norm and RoPE, a key/value cache.

    Subclasses implement `attend`. Beside the arguments of `nnx.MultiHeadAttention`, `rope_base` (a float, default
    None for no positional encoding) turns on rotary positions, and `key_conv_width` (default 1 for none) a short
    causal convolution on the keys.

    Raises:
      ValueError: for options of `nnx.MultiHeadAttention` that causal self-attention does not have.
    """

    def __init__(self, num_heads, in_features, qkv_features=None, out_features=None, num_kv_heads=None,
                 in_kv_features=None, *, rope_base: float | None = None, key_conv_width: int = 1,
                 rngs: nnx.Rngs, **options):
        if options.get("dropout_rate"):
            raise ValueError(f"dropout_rate must be 0 (weights are never materialised), got {options['dropout_rate']}")
        if "attention_fn" in options:
            raise ValueError("attention_fn cannot be set: the class is the attention function")
        super().__init__(num_heads, in_features, qkv_features, out_features, num_kv_heads, in_kv_features,
                         rngs=rngs, **options)
        if self.in_kv_features != self.in_features:
            raise ValueError(f"in_kv_features must equal in_features={in_features}, got {in_kv_features}")
        check_integer("key_conv_width", key_conv_width, 1)
        self.rope_base = rope_base
        self.key_conv = nnx.data(None)
        if key_conv_width > 1:
            self.key_conv = ShortConvolution(
                self.num_kv_heads, self.head_dim, key_conv_width, param_dtype=self.param_dtype)

    def __call__(
        self,
        inputs_q: Activations,
        inputs_k: Activations | None = None,
        inputs_v: Activations | None = None,
        *,
        mask=None,
        deterministic: bool | None = None,
        rngs=None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = True,
        out_sharding=None,
        qkv_sharding=None,
        segment_ids: SegmentIds | None = None,
        **arguments,
    ) -> Activations:
        """Causal self-attention of inputs_q [..., T, D].

        Args:
          inputs_q: the activations.
          inputs_k: None or `inputs_q`.
          inputs_v: None or `inputs_q`.
          mask: None; packed documents are told apart by `segment_ids`.
          deterministic: unused, there is no dropout.
          rngs: unused, there is no dropout.
          sow_weights: False; attention weights are never materialised.
          decode: whether the tokens follow those in the cache; default the constructor's `decode`, then False.
          is_causal: True.
          out_sharding: sharding of the output projection, as in `nnx.MultiHeadAttention`.
          qkv_sharding: sharding of the input projections, likewise.
          segment_ids: int [..., T], packed documents, each starting at a block boundary; not with `decode`.
          **arguments: those of the subclass's `attend`.

        Raises:
          ValueError: for anything that is not causal self-attention, and for `decode` without a cache, beyond it or
            in a phase of training.
        """
        if any(x is not None and x is not inputs_q for x in (inputs_k, inputs_v)):
            raise ValueError("inputs_k and inputs_v must be None or inputs_q: this is causal self-attention")
        if mask is not None or sow_weights or not is_causal:
            raise ValueError("mask must be None, sow_weights False and is_causal True: this is causal self-attention")
        if inputs_q.shape[-1] != self.in_features:
            raise ValueError(f"inputs_q must have in_features={self.in_features} features, got {inputs_q.shape}")
        lead = inputs_q.shape[:-2]
        x = inputs_q.reshape(-1, *inputs_q.shape[-2:])
        decode = bool(self.decode if decode is None else decode)
        if segment_ids is not None:
            if decode:
                raise ValueError("segment_ids must be None with decode=True: a cache holds one document per sequence")
            check_integers("segment_ids", segment_ids, inputs_q.shape[:-1], "[..., T]")
            segment_ids = segment_ids.reshape(x.shape[:2])
        if decode:
            if arguments.get("phase", "sparse") != "sparse" or arguments.get("distil"):
                raise ValueError(f"decode must be False in training: phase is sparse and distil False, got {arguments}")
            self.check_cache(*x.shape[:2])
        q, k, v = self.project(x, segment_ids=segment_ids, decode=decode, sharding=qkv_sharding)
        kept, further = self.project_further(q, k, v, segment_ids=segment_ids, decode=decode)
        place = {"segment_ids": segment_ids}
        if decode:
            kept, place = self.extend_cache(kept)
        out = self.attend(q, kept, place, **further, **arguments)
        out = self.out(out, out_sharding=out_sharding)
        if decode:
            self.cache_index[...] += x.shape[1]
        return out.reshape(*lead, *out.shape[-2:])

    def project(self, x, *, segment_ids=None, decode: bool = False, sharding=None):
        """Queries [B, T, N, H], keys and values [B, T, K, H] of activations x [B, T, D], as attention reads them."""
        q, k, v = (project(x, out_sharding=sharding) for project in (self.query, self.key, self.value))
        if self.key_conv is not None:
            k = self.key_conv(k, segment_ids=segment_ids, decode=decode)
        if self.normalize_qk:
            q, k = self.query_ln(q), self.key_ln(k)
        if self.rope_base is not None:
            start = self.cache_index[...] if decode else 0
            position = start + jnp.arange(x.shape[1])
            q, k = (apply_rope(y, position, self.rope_base) for y in (q, k))
        return q, k, v

    def project_further(self, q, k, v, *, segment_ids, decode: bool) -> tuple[dict, dict]:
        """What a cache keeps for later queries, [B, T, K, width] each, and further arguments of `attend`."""
        return {"key": k, "value": v}, {}

    def attend(self, q, kept: dict, place: dict):
        """Attention of q [B, T, N, H] over what is kept; `place` are the keyword arguments that say where q stands."""
        raise NotImplementedError

    def init_cache(self, input_shape, dtype=jnp.float32):
        """Makes empty caches for sequences of `input_shape` = (..., length, D), as `nnx.MultiHeadAttention` does."""
        self._init_caches(input_shape, dtype, key=self.head_dim, value=self.head_dim)

    def _init_caches(self, input_shape, dtype, **widths: int):
        *lead, length, _ = input_shape
        batch = 1
        for size in lead:
            batch *= size
        for name, width in widths.items():
            setattr(self, f"cached_{name}", nnx.Cache(jnp.zeros((batch, length, self.num_kv_heads, width), dtype)))
        if self.key_conv is not None:
            self.key_conv.init_cache(batch, dtype)
        self.cache_index = nnx.Cache(jnp.array(0, dtype=jnp.int32))

    def check_cache(self, batch: int, tokens: int) -> None:
        """Raises ValueError, before anything is written, unless the caches can take `tokens` more tokens."""
        if self.cache_index is None:
            raise ValueError("decode=True needs a cache: call init_cache((..., length, features)) first")
        held, capacity = self.cached_key.shape[:2]
        if batch != held:
            raise ValueError(f"the cache holds {held} sequences, got {batch}")
        index = 0 if isinstance(self.cache_index[...], jax.core.Tracer) else int(self.cache_index[...])
        if not self.rolls and index + tokens > capacity:
            raise ValueError(f"the cache holds {capacity} tokens, got {index} + {tokens}")

    @property
    def rolls(self) -> bool:
        """Whether the caches drop tokens that no later query sees, and so never fill up."""
        return False

    def extend_cache(self, new: dict) -> tuple[dict, dict]:
        """Writes new keys at the cache's end; returns the whole caches and where the queries stand."""
        index, kept = self.cache_index[...], {}
        for name, value in new.items():
            cache = getattr(self, f"cached_{name}")
            cache[...] = jax.lax.dynamic_update_slice_in_dim(cache[...], value.astype(cache.dtype), index, axis=1)
            kept[name] = cache[...].astype(value.dtype)
        return kept, {"q_offset": index, "kv_length": index + new["key"].shape[1]}


class DivergenceLoss(nnx.Intermediate):
    """How far a router is from dense attention's weight, kept by a call with `distil=True` inside `nnx.capture`."""


class DenseAttention(CausalAttention):
    """Full causal attention."""

    def attend(self, q, kept, place):
        return dense_attention(q, kept["key"], kept["value"], **place)


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


class GlobalTokenAttention(CausalAttention):
    """Attention to the last `window` positions and to `num_slots` learned summaries of the blocks before."""

    def __init__(self, *args, window: int, num_slots: int, block_size: int, rngs: nnx.Rngs, **options):
        for name, value in (("window", window), ("num_slots", num_slots), ("block_size", block_size)):
            check_integer(name, value, 1)
        super().__init__(*args, rngs=rngs, **options)
        self.window, self.block_size = window, block_size
        shape = (num_slots, self.num_kv_heads, self.head_dim)
        self.slot_query = nnx.Param(
            nnx.initializers.normal(1.0)(rngs.params(), shape, self.param_dtype),
            out_sharding=(None, "heads", "head_dim"), eager_sharding=False)  # names of this package, not of a mesh
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


class ChoosingAttention(CausalAttention):
    """What the mechanisms share that choose blocks without a router; `selection` says how many.

    Subclasses set `choose_and_attend`, one of the functions of `subq_jax.attention`.
    """

    choose_and_attend = None

    def __init__(self, *args, selection: SelectionConfig, **options):
        super().__init__(*args, **options)
        self.selection = selection

    def attend(self, q, kept, place):
        return self.choose_and_attend(q, kept["key"], kept["value"], self.selection, **place)


class BlockMeanAttention(ChoosingAttention):
    """Blocks chosen by mean keys (MoBA)."""

    choose_and_attend = staticmethod(block_mean_attention)


class RandomBlocksAttention(ChoosingAttention):
    """Blocks chosen by lot."""

    choose_and_attend = staticmethod(random_blocks_attention)


class OracleTopkAttention(ChoosingAttention):
    """Blocks chosen by dense attention's own weight; every `phase` but `"sparse"` is dense attention."""

    choose_and_attend = staticmethod(oracle_topk_attention)

    def attend(self, q, kept, place, *, phase: str = "sparse", distil: bool = False):
        check_phase(phase)
        if phase == "sparse":
            return super().attend(q, kept, place)
        return dense_attention(q, kept["key"], kept["value"], **place)


class SelectiveAttention(CausalAttention):
    """Selective attention with a non-negative router on its own queries and keys.

    `selection` sets block size and budget, `router_dim` the width R of the router. Of a router query a part
    `router_share` is the mean of the last `router_window` tokens', so that neighbours choose alike (default 1 token:
    none). `gate` and `implementation` are those of `subq_jax.selective_attention`. The gate trains the router by the
    model's loss; a call with `distil=True` also keeps a `DivergenceLoss` of the router alone, which trains it without a
    gate or beside it.

    `phase` of a call is one of `PHASES`: `"sparse"`; `"gated"`, the warm-up in which every candidate block is selected,
    so that all receive a gradient; `"dense"`, plain dense attention, in which attention learns undisturbed.
    """

    def __init__(self, num_heads, in_features, *args, selection: SelectionConfig | None = None, router_dim: int = 64,
                 router_window: int = 1, router_share: float = 1.0, gate: bool = True,
                 implementation: str | None = None, rngs: nnx.Rngs, **options):
        check_integer("router_dim", router_dim, 1)
        check_integer("router_window", router_window, 1)
        check_share("router_share", router_share)
        super().__init__(num_heads, in_features, *args, rngs=rngs, **options)
        self.selection = SelectionConfig() if selection is None else selection
        self.router_dim, self.gate, self.implementation = router_dim, gate, implementation
        self.router = TiedRouter(self.num_kv_heads, self.head_dim, router_dim, self.selection,
                                 param_dtype=self.param_dtype, rngs=rngs)
        self.router_mean = nnx.data(None)
        if router_window > 1:
            self.router_mean = RunningMean(self.num_kv_heads, router_dim, router_window, router_share)
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
        return selective_attention(q, kept["key"], kept["value"], router_q, kept["router_key"], selection,
                                   gate=self.gate, implementation=self.implementation, **place)


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
        return learned_router_attention(q, kept["key"], kept["value"], index, self.selection, **place)


def check_phase(phase: str) -> None:
    """Raises ValueError unless `phase` is one of `PHASES`."""
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {PHASES}, got {phase!r}")


def covering(selection: SelectionConfig, length: int) -> SelectionConfig:
    """The same selection with as many blocks as `length` tokens have, and so without need of a tree."""
    blocks = num_key_blocks(length, selection.block_size)
    return dataclasses.replace(selection, num_blocks=blocks, fanouts=())
