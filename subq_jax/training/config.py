"""What a training config must hold, and the checks that refuse a wrong one before any compute."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from subq_jax.attention.mechanisms import WARM_UP
from subq_jax.checks import check_fields, check_integer, check_mapping
from subq_jax.data import DataConfig
from subq_jax.data.config import check_stages
from subq_jax.model.config import DecoderConfig

SECTIONS = ("data", "model", "optimizer", "training")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up to `learning_rate`, then a cosine down to `final_lr_fraction` of it."""

    learning_rate: float
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    clip_norm: float
    final_lr_fraction: float

    def __post_init__(self):
        _require(self, "learning_rate", self.learning_rate > 0, "> 0")
        _require(self, "warmup_steps", self.warmup_steps >= 0, ">= 0")
        _require(self, "weight_decay", self.weight_decay >= 0, ">= 0")
        _require(self, "b1", 0 <= self.b1 < 1, "in [0, 1)")
        _require(self, "b2", 0 <= self.b2 < 1, "in [0, 1)")
        _require(self, "clip_norm", self.clip_norm > 0, "> 0")
        _require(self, "final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "in [0, 1]")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length of a run and its rhythm, in optimiser steps; `eval_every=0` never evaluates during training.

    Arms with a router start with `dense_steps` in which every block is seen, the first `ungated_steps` of them as plain
    dense attention, the rest with the router's gate. `microbatches` parts of a batch go through the model one after
    another, so that memory is that of one part.
    """

    steps: int
    dense_steps: int
    ungated_steps: int
    microbatches: int
    checkpoint_every: int
    keep_checkpoints: int
    log_every: int
    eval_every: int

    def __post_init__(self):
        for name in ("steps", "microbatches", "checkpoint_every", "keep_checkpoints", "log_every"):
            _require(self, name, getattr(self, name) >= 1, ">= 1")
        _require(self, "dense_steps", 0 <= self.dense_steps <= self.steps, f"in [0, steps={self.steps}]")
        _require(self, "ungated_steps", 0 <= self.ungated_steps <= self.dense_steps,
                 f"in [0, dense_steps={self.dense_steps}]")
        _require(self, "eval_every", self.eval_every >= 0, ">= 0")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The checked sections of a run."""

    seed: int
    data: DataConfig
    model: DecoderConfig
    optimizer: OptimizerConfig
    training: TrainingConfig

    def phase(self, step: int) -> str:
        """The phase of training step `step`, counted from 1, see `SelectiveAttention`."""
        if self.model.mechanism not in WARM_UP or "selective" not in self.model.layer_kinds:
            return "sparse"
        if self.model.mechanism == "oracle_topk" or step <= self.training.ungated_steps:
            return "dense"
        return "gated" if step <= self.training.dense_steps else "sparse"


def check_config(config: ConfigDict, *, vocab_size: int | None = None) -> RunConfig:
    """Checks everything about a config that needs no data and no device.

    Args:
      config: sections `data`, `model`, `optimizer`, `training` and an integer `seed`.
      vocab_size: the data's vocabulary, which fills `model.vocab_size=0`; None while it is not yet known.

    Returns:
      The sections as typed values. `model.vocab_size` is 1 while neither side has named it.

    Raises:
      ValueError: for a section that is no mapping, a missing or unknown field, a value of the wrong type, a number
        that is not finite or out of range, an unknown mechanism or a budget it cannot keep, or a vocabulary smaller
        than the data's.
    """
    sections = config.to_dict()
    check_fields("config", sections, ("seed", *SECTIONS), ("seed", *SECTIONS))
    for name, value in _leaves(sections):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
    if type(config.seed) is not int or not 0 <= config.seed < 2**31:
        raise ValueError(f"seed must be an integer in [0, 2**31), got {config.seed!r}")
    data = DataConfig.from_mapping(sections["data"])
    optimizer = _build(OptimizerConfig, "optimizer", sections["optimizer"])
    training = _build(TrainingConfig, "training", sections["training"])
    if optimizer.warmup_steps >= training.steps:
        raise ValueError(
            f"optimizer.warmup_steps must be < training.steps={training.steps}, got {optimizer.warmup_steps}"
        )
    model = _check_model(sections["model"], vocab_size)
    check_stages(data, model.block_size)
    return RunConfig(config.seed, data, model, optimizer, training)


def _check_model(section: Mapping[str, Any], vocab_size: int | None) -> DecoderConfig:
    check_mapping("model", section)
    asked = section.get("vocab_size", 0)
    check_integer("model.vocab_size", asked, 0)
    if asked and vocab_size and asked < vocab_size:
        raise ValueError(f"model.vocab_size must be >= the data's {vocab_size}, or 0 to take it, got {asked}")
    return DecoderConfig.from_mapping({**section, "vocab_size": asked or vocab_size or 1})


def _build(cls: type, section: str, values: Mapping[str, Any]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    check_fields(section, values, fields, fields)
    for name, value in values.items():
        kinds = (int,) if fields[name].type is int else (int, float)
        if type(value) not in kinds:
            raise ValueError(f"{section}.{name} must be {fields[name].type.__name__}, got {value!r}")
    return cls(**values)


def _require(config: OptimizerConfig | TrainingConfig, name: str, allowed: bool, bounds: str) -> None:
    if not allowed:
        section = type(config).__name__.removesuffix("Config").lower()
        raise ValueError(f"{section}.{name} must be {bounds}, got {getattr(config, name)}")


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree
