"""Gradients added up over the parts of a batch are those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoder import SHAPE, decoder

from subq_jax.training import train
from subq_jax.training.step import loss_and_grads


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("route", "microbatches"), [
    pytest.param("gate", 2, marks=pytest.mark.slow), pytest.param("both", 2, marks=pytest.mark.slow), ("both", 4)])
def test_parts_add_up(route, microbatches, packed):
    graph, weights = nnx.split(decoder("selective", router_training=route))
    keys = jax.random.split(jax.random.key(0), 3)
    inputs, targets = (jax.random.randint(key, (4, 24), 0, SHAPE["vocab_size"]) for key in keys[:2])
    # Rows of unequal weight: a mean of means would be another loss.
    counted = jnp.arange(4)[:, None] >= jnp.arange(24)[None] % 5
    batch = {"inputs": inputs, "targets": targets, "loss_weights": 1.0 * counted,
             "segment_ids": jnp.where(jnp.arange(24)[None] < jnp.array([24, 24, 24, 3])[:, None], 0, -1)}
    run = lambda parts: jax.jit(
        lambda w: loss_and_grads(graph, w, batch, "sparse", route == "both", packed, parts))(weights)
    for a, b in zip(*(jax.tree.leaves(run(parts)) for parts in (1, microbatches)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_a_batch_that_cannot_be_cut_evenly_is_refused(tmp_path, tiny_config):
    tiny_config.training.microbatches = 3
    with pytest.raises(ValueError, match="training.microbatches=3 sequences at length"):
        train(tiny_config, tmp_path, show_progress=False)


@pytest.mark.slow
def test_a_run_in_parts_is_the_run_as_a_whole(tmp_path, tiny_config):
    tiny_config.training.steps, tiny_config.training.dense_steps = 6, 2
    tiny_config.optimizer.warmup_steps = 2
    losses = []
    for parts in (1, 2):
        tiny_config.training.microbatches = parts
        rows = train(tiny_config, tmp_path / str(parts), show_progress=False).metrics
        losses.append([row["loss"] for row in rows if "loss" in row])
    np.testing.assert_allclose(*losses, rtol=1e-4)
