import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_decoder import decoder

from subq_jax.evaluation.held_out import count_answers
from subq_jax.evaluation.losses import weighted_cross_entropy
from subq_jax.training.config import OptimizerConfig
from subq_jax.training.optimizer import make_optimizer, make_schedule, router_or_rest
from subq_jax.training.throughput import Throughput

CONFIG = OptimizerConfig(
    learning_rate=0.5,
    warmup_steps=10,
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    clip_norm=1.0,
    final_lr_fraction=0.1,
)


def test_schedule_warms_up_and_decays_to_the_final_fraction():
    schedule = make_schedule(CONFIG, steps=110)
    assert float(schedule(0)) == pytest.approx(0.05)  # the first step moves
    assert float(schedule(5)) == pytest.approx(0.05 + 0.45 / 2)
    assert float(schedule(10)) == pytest.approx(0.5)
    assert float(schedule(60)) == pytest.approx((0.5 + 0.05) / 2)  # half-way down the cosine
    assert float(schedule(110)) == pytest.approx(0.05)


def test_only_matrices_decay():
    optimizer = make_optimizer(CONFIG, steps=110)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale"], 0.0)


def test_routers_are_clipped_apart_where_that_is_asked_for():
    params = nnx.state(decoder("selective", router_window=2, router_learns_window=True))
    labels = router_or_rest(params)
    attention = nnx.to_pure_dict(labels)["layers"][1]["attention"]
    assert set(jax.tree.leaves([attention["router"], attention["router_mean"]])) == {"router"}
    assert set(jax.tree.leaves(attention["key"])) == {"rest"}
    grads = jax.tree.map(lambda label, x: jnp.full_like(x, 1e6 if label == "router" else 1e-3),
                         router_or_rest(params), params)
    moments = {}
    for apart in (False, True):
        optimizer = make_optimizer(CONFIG, 110, routers_apart=apart)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moments[apart] = optax.tree.get(state, "mu")
    together, alone = (float(jnp.abs(moments[apart]["embed"]["embedding"][...]).max()) for apart in (False, True))
    assert alone == pytest.approx(1e-4, rel=1e-3)  # (1 - b1) of the gradient, which needs no clipping
    assert together < 1e-9


def test_loss_counts_weighted_positions_only_and_in_float32():
    logits = jnp.array([[[2.0, 0.0], [0.0, -jnp.inf], [1.0, 1.0]]], jnp.bfloat16)
    targets = jnp.array([[0, 1, 1]])
    weights = jnp.array([[1.0, 0.0, 0.5]])  # the middle position alone would be infinite
    total, weight = weighted_cross_entropy(logits, targets, weights)
    assert total.dtype == jnp.float32
    assert float(total) == pytest.approx(np.log1p(np.exp(-2.0)) + 0.5 * np.log(2.0), rel=1e-6)
    assert float(weight) == 1.5


def test_an_answer_is_right_when_all_its_tokens_are():
    mask = np.array([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 0]], bool)
    correct = np.array([[0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]], bool)
    assert count_answers(correct, mask) == (2, 4)
    assert count_answers(correct, np.zeros_like(mask)) == (0, 0)


def test_throughput_leaves_out_pauses_and_unknown_work(monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    throughput = Throughput(peak=100.0)
    throughput.count(60, flops=90.0)
    throughput.pause(1.0)
    assert throughput.read() == {"tokens_per_second": pytest.approx(20.0), "mfu": pytest.approx(0.3)}
    throughput.count(10, flops=None)
    throughput.count(10, flops=50.0)
    assert throughput.read() == {"tokens_per_second": pytest.approx(10.0), "mfu": None}
