"""What the attention modules share: projections, optional QK-norm, RoPE and key convolution, a key/value cache."""

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.checks import check_integers
from subq_jax.axes import Activations, SegmentIds
from subq_jax.checks import check_integer
from subq_jax.model.rope import apply_rope
from subq_jax.model.short_conv import ShortConvolution


class ChosenBlocks(nnx.Intermediate):
    """What the queries of a call chose, int32 [B, T, K, M], kept inside `nnx.capture` only."""


class CausalAttention(nnx.MultiHeadAttention):
    """What the mechanisms share: projections, optional QK-norm and RoPE, a key/value cache.

    Subclasses implement `attend`. Beside the arguments of `nnx.MultiHeadAttention`, `rope_base` (a float, default
    None for no positional encoding) turns on rotary positions, and `key_conv_width` (default 1 for none) a short
    causal convolution on the keys.

    Setting `cache_index` to an earlier position rolls a cache back to it. That is right only without a key convolution,
    a router window or a cache that rolls: what these keep of the last tokens stays as it is.

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
          TypeError: for `segment_ids` that are no integers.
          ValueError: for anything that is not causal self-attention, segment ids that do not fit, and `decode` without
            a cache, in a phase of training or beyond the cache. A full cache is told only where `cache_index` is
            concrete: under `jit` the last tokens are written over.
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

    def keep_selection(self, out, selection):
        """`out`, with the selection kept for whoever captures `ChosenBlocks`; else it costs nothing."""
        self.sow(ChosenBlocks, "chosen", selection, capture_noop=True)
        return out

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
        """Raises ValueError, before anything is written, unless the caches can take `tokens` more tokens.

        Under `jit` the index is unknown, and counted as 0.
        """
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
