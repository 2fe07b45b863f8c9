"""AdamW with warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax

from subq_jax.training.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear over `warmup_steps` to the peak, then a cosine to the final fraction at `steps`.

    The first step already moves: warm-up starts at peak / warmup_steps, not at 0.
    """
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / max(1, config.warmup_steps),
        peak_value=peak,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=peak * config.final_lr_fraction,
    )


def make_optimizer(
    config: OptimizerConfig, steps: int, *, routers_apart: bool = False
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019) after clipping by the global norm; only matrices decay.

    Norm scales, biases and the like (one dimension or none) are not decayed: pulling them to zero removes the signal
    instead of regularising it. With `routers_apart` the routers' gradients are clipped by a norm of their own: that of
    distillation is large at first, and would take the rest of the model's share.
    """
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(
        optax.partition({"router": clip, "rest": clip}, router_or_rest) if routers_apart else clip,
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        ),
    )


def is_matrix(params: Any) -> Any:
    """True for each array of two or more dimensions."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def router_or_rest(params: Any) -> Any:
    """`"router"` for each array of a router or indexer, `"rest"` for all others."""
    names = ("'router'", "'router_mean'", "'indexer'")

    def label(path, _):
        return "router" if any(name in jax.tree_util.keystr(path) for name in names) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)
