"""The decoder: local layers with RoPE for what is near, NoPE layers with the mechanism under study for the rest."""

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.attention.mechanisms import WARM_UP
from subq_jax.axes import Activations, Logits, SegmentIds, Tokens
from subq_jax.model.attention_modules import (
    BlockMeanAttention,
    CausalAttention,
    DenseAttention,
    GlobalTokenAttention,
    LearnedRouterAttention,
    OracleTopkAttention,
    RandomBlocksAttention,
    SelectiveAttention,
    SlidingWindowAttention,
)
from subq_jax.model.config import DecoderConfig
from subq_jax.model.embedding import Embedding
from subq_jax.model.logical_axes import named_init
from subq_jax.parallel.sharding import constrain


class Decoder(nnx.Module):
    """A pre-norm decoder-only transformer: attention with a short convolution on its keys, SwiGLU.

    Parameters carry logical axis names ("embed", "heads", "mlp", "vocab", "router") that `subq_jax.parallel` maps to
    a mesh. With `init_cache` and `decode=True` a call continues the sequences in the cache.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
        self.embed = Embedding(
            config.vocab_size, config.width, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
            embedding_init=named_init(nnx.initializers.normal(0.16), "vocab", "embed"))
        self.layers = nnx.List([DecoderLayer(config, kind, rngs=rngs) for kind in config.layer_kinds])
        self.norm = _norm(config, rngs)
        self.head = nnx.Linear(
            config.width, config.vocab_size, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
            kernel_init=named_init(nnx.initializers.lecun_normal(), "embed", "vocab"))

    def __call__(
        self,
        tokens: Tokens,
        *,
        segment_ids: SegmentIds | None = None,
        phase: str = "sparse",
        distil: bool = False,
        decode: bool = False,
    ) -> Logits:
        """Next-token logits, float32 [B, T, V].

        Args:
          tokens: int32 [B, T].
          segment_ids: int32 [B, T], packed documents, each starting at a block boundary; negative for padding.
          phase: of training an arm in `WARM_UP`: `"dense"`, `"gated"` or `"sparse"`, see `SelectiveAttention`.
          distil: whether their routers keep a `DivergenceLoss` each, for `nnx.capture`.
          decode: whether the tokens continue the sequences in the cache.

        Raises:
          ValueError: for tokens that are no integers, an unknown phase, segment ids that do not fit, and `decode`
            without a cache or beyond it.
        """
        x = constrain(self.embed(tokens), "batch", None, None)

        def run(layer, x, segment_ids):
            return layer(x, segment_ids, phase=phase, distil=distil, decode=decode)

        run = nnx.remat(run) if self.config.remat else run
        for layer in self.layers:
            x = constrain(run(layer, x, segment_ids), "batch", None, None)
        return constrain(self.head(self.norm(x)).astype(jnp.float32), "batch", None, "vocab")

    def init_cache(self, batch: int, length: int) -> None:
        """Makes empty caches for `batch` sequences of up to `length` tokens."""
        for layer in self.layers:
            layer.init_cache(batch, length)


class DecoderLayer(nnx.Module):
    """One residual layer, `"local"` or `"selective"`."""

    def __init__(self, config: DecoderConfig, kind: str, *, rngs: nnx.Rngs):
        self.width, self.dtype = config.width, jnp.dtype(config.dtype)
        self.warms_up = kind == "selective" and config.mechanism in WARM_UP
        self.attention_norm, self.mlp_norm = _norm(config, rngs), _norm(config, rngs)
        self.attention = build_attention(config, kind, rngs=rngs)
        self.mlp = SwiGLU(config, rngs=rngs)

    def __call__(self, x: Activations, segment_ids=None, *, phase: str, distil: bool, decode: bool) -> Activations:
        arguments = {"phase": phase, "distil": distil} if self.warms_up else {}
        x = x + self.attention(self.attention_norm(x), segment_ids=segment_ids, decode=decode, **arguments)
        return x + self.mlp(self.mlp_norm(x))

    def init_cache(self, batch: int, length: int) -> None:
        """Makes empty caches for `batch` sequences of up to `length` tokens."""
        self.attention.init_cache((batch, length, self.width), self.dtype)


class SwiGLU(nnx.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        def linear(inputs, outputs, *names):
            return nnx.Linear(
                inputs, outputs, use_bias=False, dtype=jnp.dtype(config.dtype),
                param_dtype=jnp.dtype(config.param_dtype), rngs=rngs,
                kernel_init=named_init(nnx.initializers.lecun_normal(), *names))

        self.gate = linear(config.width, config.mlp_width, "embed", "mlp")
        self.up = linear(config.width, config.mlp_width, "embed", "mlp")
        self.down = linear(config.mlp_width, config.width, "mlp", "embed")

    def __call__(self, x: Activations) -> Activations:
        return self.down(constrain(jax.nn.silu(self.gate(x)) * self.up(x), "batch", None, "mlp"))


def build_attention(config: DecoderConfig, kind: str, *, rngs: nnx.Rngs) -> CausalAttention:
    """The attention module of a layer: a RoPE window for `"local"`, the configured mechanism for `"selective"`."""
    options = {
        "num_heads": config.num_heads, "in_features": config.width, "num_kv_heads": config.num_kv_heads,
        "qkv_features": config.num_heads * config.head_dim, "out_features": config.width,
        "key_conv_width": config.key_conv_width, "use_bias": False, "normalize_qk": True, "rngs": rngs,
        "dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype),
        "kernel_init": named_init(nnx.initializers.lecun_normal(), "embed", "heads", "head_dim"),
        "out_kernel_init": named_init(nnx.initializers.lecun_normal(), "heads", "head_dim", "embed"),
    }
    if kind == "local":
        return SlidingWindowAttention(**options, window=config.local_window, rope_base=config.rope_base)
    match config.mechanism:
        case "dense":
            return DenseAttention(**options)
        case "sliding_window":
            return SlidingWindowAttention(**options, window=config.budget)
        case "global_token":
            slots = config.arm.num_slots
            return GlobalTokenAttention(
                **options, window=config.budget - slots, num_slots=slots, block_size=config.block_size)
        case "block_mean":
            return BlockMeanAttention(**options, selection=config.arm.selection_config())
        case "random_blocks":
            return RandomBlocksAttention(**options, selection=config.arm.selection_config())
        case "oracle_topk":
            return OracleTopkAttention(**options, selection=config.arm.selection_config())
        case "learned_router":
            return LearnedRouterAttention(
                **options, selection=config.arm.selection_config(), router_dim=config.router_dim)
        case "gated_mean" | "selective":  # they differ in the pooling of their selection
            return SelectiveAttention(
                **options, selection=config.arm.selection_config(), router_dim=config.router_dim,
                router_window=config.router_window, router_share=config.router_share,
                router_learns_window=config.router_learns_window, router_tied=config.router_tied,
                gate=config.router_training != "distilled")


def _norm(config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.width, dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype), rngs=rngs)
