"""The router's divergence from dense attention's weight, against the textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import arrays

from subq_jax import SelectionConfig
from subq_jax.attention.distillation import router_divergence
from subq_jax.kernels.xla import grain

CONFIG = SelectionConfig(block_size=4, num_blocks=1, local_blocks=1, sink_blocks=1)
LENGTH, KV_HEADS, GROUP = 37, 2, 3


def values():
    q, k, _, router_q, router_k = arrays(0, 2, LENGTH, LENGTH, KV_HEADS, GROUP)
    return q, k, router_q, router_k


def expected(q, k, router_q, router_k, start=0):
    """Sum over queries and KV heads of one sequence, one query at a time, in float64."""
    q, k, router_q, router_k = (np.asarray(x, np.float64) for x in (q, k, router_q, router_k))
    total = 0.0
    for head in range(k.shape[1]):
        for t in range(len(q)):
            candidates = range(1, t // 4)
            if not candidates:
                continue
            mass = np.zeros(10)
            for member in range(GROUP):
                weights = np.exp(k[: t + 1, head] @ q[t, head * GROUP + member] / 8**0.5)
                np.add.at(mass, np.arange(t + 1) // 4, weights / weights.sum() / GROUP)
            scores = np.array([router_q[t, head] @ router_k[4 * b : 4 * b + 4, head].max(axis=0) for b in candidates])
            choice = np.exp([0, *scores / 2])  # sinks and local blocks together have the score 0
            choice /= choice.sum()
            mass = np.array([1 - mass[list(candidates)].sum(), *mass[list(candidates)]])
            total += (mass * np.log(mass / choice)).sum()
    return total


@pytest.mark.parametrize("chunks", ["one", "many"])
def test_divergence_is_that_of_the_textbook(monkeypatch, chunks):
    if chunks == "many":
        monkeypatch.setattr(grain, "CPU_GRAIN", grain.CPU_GRAIN._replace(whole=1))
    actual = jax.jit(lambda *x: router_divergence(*x, CONFIG))(*values())
    wanted = sum(expected(*row) for row in zip(*values(), strict=True)) / (2 * LENGTH * KV_HEADS)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_documents_are_compared_on_their_own():
    segment_ids = jnp.array([[0] * 16 + [1] * 18 + [-1] * 3, [0] * 37])
    actual = jax.jit(lambda *x: router_divergence(*x, CONFIG, segment_ids=segment_ids))(*values())
    rows = list(zip(*values(), strict=True))
    parts = [[x[:16] for x in rows[0]], [x[16:34] for x in rows[0]], rows[1]]
    np.testing.assert_allclose(actual, sum(expected(*part) for part in parts) / (71 * KV_HEADS), rtol=1e-5)


def test_the_level_of_the_scores_is_taught_too():
    q, k, router_q, router_k = values()
    level = jax.jit(jax.grad(lambda level: router_divergence(q, k, router_q, router_k + level, CONFIG)))
    assert level(5.0) > 0.1 and level(-5.0) < -0.1


def test_only_the_router_learns_and_it_does():
    run = jax.jit(jax.value_and_grad(lambda *x: router_divergence(*x, CONFIG), argnums=(0, 1, 2, 3)))
    q, k, router_q, router_k = values()
    before, (dq, dk, d_router_q, d_router_k) = run(q, k, router_q, router_k)
    assert not dq.any() and not dk.any()
    after, _ = run(q, k, router_q - 3 * d_router_q, router_k - 3 * d_router_k)
    assert 0 < after < before
