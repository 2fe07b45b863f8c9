"""One optimiser step as a pure, jitted function over pytrees."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from subq_jax.evaluation.losses import weighted_cross_entropy
from subq_jax.model.attention_modules import DivergenceLoss
from subq_jax.parallel.sharding import (
    activation_mesh,
    batch_sharding,
    check_mesh_is_used,
    replicated,
    state_shardings,
)


@flax.struct.dataclass
class TrainState:
    """What a step changes: parameters, the optimiser's moments, and the number of steps taken (int32 scalar)."""

    params: nnx.State
    opt_state: Any
    step: jax.Array


@flax.struct.dataclass
class StepMetrics:
    """Scalars of one step: the mean loss in nats a token, the routers' mean divergence from dense attention (0 without
    distillation) and the gradient's norm before clipping, all float32, and whether every parameter and moment after it
    is finite."""

    loss: jax.Array
    divergence: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


def abstract_state(
    make_model: Callable[[], nnx.Module], optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState, Callable[[], TrainState]]:
    """Describes a training state without computing it, so that a resumed run never initialises for nothing.

    Args:
      make_model: builds the model; runs under `jit`, so each device makes only its own share.
      optimizer: the optimiser whose state goes along.
      mesh: the mesh that the logical axis names are laid out on.

    Returns:
      The model's graph, the state as `ShapeDtypeStruct`s with shardings, and a function that initialises it.

    Raises:
      ValueError: when an axis of the mesh would cut nothing.
    """

    def init():
        params = nnx.state(make_model())
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    graphdef, _ = jax.eval_shape(lambda: nnx.split(make_model()))
    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, mesh)
    check_mesh_is_used(shardings, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return graphdef, abstract, jax.jit(init, out_shardings=shardings)


def loss_and_grads(
    graphdef: nnx.GraphDef, params: nnx.State, batch: dict[str, jax.Array], phase: str, distil: bool, packed: bool,
    microbatches: int = 1
) -> tuple[tuple[jax.Array, jax.Array], nnx.State]:
    """Mean loss over the weighted positions of the whole global batch and the routers' divergence, and their gradient.

    The gradient is that of the sum of both; that of the divergence reaches the routers alone.

    Args:
      graphdef: the model's graph.
      params: its parameters.
      batch: arrays [B, T], see `subq_jax.data`.
      phase: of training, see `SelectiveAttention`.
      distil: whether routers learn where dense attention looks.
      packed: whether rows hold several documents; if not, the model is spared the segment ids.
      microbatches: parts that the batch goes through one after another, their gradients added up.
    """
    weight = jnp.maximum(batch["loss_weights"].sum(dtype=jnp.float32), 1.0)
    positions = lambda part: (part["segment_ids"] >= 0).sum(dtype=jnp.float32) if packed else part["inputs"].size

    def loss_fn(params, part):
        segment_ids = part["segment_ids"] if packed else None
        run = nnx.capture(nnx.merge(graphdef, params), DivergenceLoss)
        logits, kept = run(part["inputs"], segment_ids=segment_ids, phase=phase, distil=distil)
        total, _ = weighted_cross_entropy(logits, part["targets"], part["loss_weights"])
        divergences = jax.tree.leaves(kept)
        share = positions(part) / jnp.maximum(positions(batch), 1)  # a divergence is a mean over what is no padding
        divergence = sum(divergences, jnp.zeros(())) / max(1, len(divergences)) * share
        return total / weight + divergence, (total / weight, divergence)

    def one(part):
        (_, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, part)
        return losses, grads

    if microbatches == 1:
        return one(batch)
    # Every part takes its rows from all over the batch, so that each device works on rows that it holds.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts)))
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, one(part)), None), zeros, parts)
    return total


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh, *, packed: bool,
    distillation_phases: tuple[str, ...] = (), microbatches: int = 1
) -> Callable[[TrainState, dict[str, jax.Array], str], tuple[TrainState, StepMetrics]]:
    """Jits the step under `mesh`; the old state's memory is donated to the new one.

    Returns:
      `step(state, batch, phase) -> (state, metrics)`. It compiles once for each batch shape and each phase.
    """

    def step(state, batch, phase):
        with activation_mesh(mesh):
            (loss, divergence), grads = loss_and_grads(
                graphdef, state.params, batch, phase, phase in distillation_phases, packed, microbatches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves((params, opt_state))]).all()
        return TrainState(params, opt_state, state.step + 1), StepMetrics(
            loss, divergence, optax.tree.norm(grads), finite)

    shardings = state_shardings(abstract, mesh)
    return jax.jit(
        step,
        static_argnums=2,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
