"""The shape of a decoder, and the checks that refuse a wrong one before any compute."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from subq_jax.attention.mechanisms import PHASES, ROUTED, Mechanism
from subq_jax.checks import check_fields, check_integer, check_learned_window, check_share

LAYER_KINDS = ("local", "selective")
DTYPES = ("float32", "bfloat16", "float16")
ROUTER_TRAINING = ("gate", "distilled", "both")
PARAM_DTYPES = ("float32", "bfloat16")  # in float16 the optimiser's epsilon is 0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of a `Decoder`.

    `layer_pattern` is repeated until it covers `num_layers`. A `"local"` layer is sliding-window attention with RoPE;
    a `"selective"` layer is NoPE and runs `mechanism`, the arm under study, at `budget` visible key positions a query
    (windows, sinks and summaries included). Nothing else in the model depends on the arm.

    `fanouts` and `beam_width` are the tree through which a router chooses, see `SelectionConfig`.
    Of a router query a part `router_share` is the mean of `router_window` tokens', so that neighbours choose alike.
    With `router_learns_window` every channel learns its weights in that window, starting there; without `router_tied`
    every query head learns a matrix of its own, starting from the one that it shares with keys.
    `router_training` says what a router learns from: the model's loss through its `"gate"`, the weight of dense
    attention (`"distilled"`, without a gate), or `"both"`: dense attention's weight until the model is sparse, and the
    gate. `learned_router` always learns from dense attention's weight.
    With `remat` the backward pass computes each layer anew from its input instead of keeping its activations.
    """

    vocab_size: int
    num_layers: int = 4
    width: int = 256
    num_heads: int = 8
    num_kv_heads: int = 1
    head_dim: int = 64
    mlp_width: int = 1024
    layer_pattern: tuple[str, ...] = ("local", "selective")
    local_window: int = 128
    mechanism: str = "selective"
    budget: int = 2048
    block_size: int = 64
    sink_blocks: int = 1
    local_blocks: int = 2
    fanouts: tuple[int, ...] = ()
    beam_width: int = 32
    router_dim: int = 128
    router_window: int = 1
    router_share: float = 1.0
    router_learns_window: bool = False
    router_tied: bool = True
    router_training: str = "gate"
    key_conv_width: int = 2
    rope_base: float = 10_000.0
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and (type(value) not in (int, float) or not math.isfinite(value)):
                raise ValueError(f"model.{field.name} must be finite, got {value!r}")
            if field.type is bool and type(value) is not bool:
                raise ValueError(f"model.{field.name} must be True or False, got {value!r}")
            if field.type is int:
                check_integer(f"model.{field.name}", value, 0 if field.name == "sink_blocks" else 1)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"model.num_heads must be a multiple of num_kv_heads={self.num_kv_heads}, "
                             f"got {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim must be even (RoPE rotates pairs), got {self.head_dim}")
        check_share("model.router_share", self.router_share)
        check_learned_window(self.router_learns_window, self.router_window, self.router_share, section="model.")
        if self.rope_base <= 0:
            raise ValueError(f"model.rope_base must be > 0, got {self.rope_base}")
        for name, allowed in (("dtype", DTYPES), ("param_dtype", PARAM_DTYPES), ("router_training", ROUTER_TRAINING)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if isinstance(self.fanouts, list):
            object.__setattr__(self, "fanouts", tuple(self.fanouts))
        _ = self.arm  # refuses an unknown mechanism and a budget that it cannot spend
        kinds = self.layer_pattern
        if not isinstance(kinds, list | tuple) or not kinds or any(kind not in LAYER_KINDS for kind in kinds):
            raise ValueError(f"model.layer_pattern must be a non-empty tuple of {LAYER_KINDS}, got {kinds!r}")
        object.__setattr__(self, "layer_pattern", tuple(kinds))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "DecoderConfig":
        """Builds the config from a plain mapping, for instance a ConfigDict section.

        Raises:
          ValueError: when `values` is no mapping, has an unknown field, lacks one, or holds a wrong value.
        """
        check_fields("model", values, [field.name for field in dataclasses.fields(cls)], ["vocab_size"])
        return cls(**{name: values[name] for name in values})

    @property
    def arm(self) -> Mechanism:
        """The mechanism of the selective layers at its budget."""
        return Mechanism(self.mechanism, self.budget, self.block_size, self.sink_blocks, self.local_blocks,
                         self.fanouts, self.beam_width)

    @property
    def distillation_phases(self) -> tuple[str, ...]:
        """The phases of training that teach routers where dense attention looks.

        With a gate only those that attend densely: the gate sharpens what queries and keys alone leave spread out, so
        that their weight is no teacher once the model is sparse.
        """
        if self.mechanism == "learned_router":
            return PHASES
        if self.mechanism not in ROUTED or self.router_training == "gate":
            return ()
        return PHASES if self.router_training == "distilled" else PHASES[:-1]

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each layer, `num_layers` long."""
        return tuple(self.layer_pattern[i % len(self.layer_pattern)] for i in range(self.num_layers))
