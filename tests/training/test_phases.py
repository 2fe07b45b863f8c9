"""The phases of training a router, and its distillation."""

import pytest

from subq_jax.training import check_config, train


def test_a_run_goes_from_dense_through_gated_to_sparse(tiny_config):
    tiny_config.training.ungated_steps, tiny_config.training.dense_steps = 2, 3
    phases = lambda: [check_config(tiny_config).phase(step) for step in (1, 2, 3, 4, 60)]
    assert phases() == ["dense", "dense", "gated", "sparse", "sparse"]
    tiny_config.model.mechanism = "oracle_topk"
    assert phases() == ["dense"] * 5
    tiny_config.model.mechanism = "block_mean"
    assert phases() == ["sparse"] * 5


@pytest.mark.slow
@pytest.mark.parametrize("route", ["distilled", "both"])
def test_a_distilled_router_comes_nearer_to_dense_attention(tmp_path, tiny_config, route):
    tiny_config.model.router_training = route
    tiny_config.training.steps, tiny_config.training.dense_steps, tiny_config.training.ungated_steps = 40, 30, 20
    tiny_config.optimizer.learning_rate = 0.02
    tiny_config.data.curriculum = ()
    rows = [row for row in train(tiny_config, tmp_path, show_progress=False).metrics if "divergence" in row]
    assert rows[-1]["step"] == (40 if route == "distilled" else 30)  # beside a gate only while the model is dense
    first, last = (sum(row["divergence"] for row in part) for part in (rows[:5], rows[-5:]))
    assert 0 < last < 0.9 * first


def test_without_distillation_there_is_no_divergence(tmp_path, tiny_config):
    tiny_config.training.steps, tiny_config.training.dense_steps = 3, 1
    tiny_config.optimizer.warmup_steps = 1
    rows = train(tiny_config, tmp_path, show_progress=False).metrics
    assert rows and not any("divergence" in row for row in rows)
