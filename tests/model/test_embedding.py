"""The embedding's own gradient is the gradient of a table lookup."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subq_jax.model import embedding


@pytest.mark.parametrize("held", [1 << 20, 66, 1])  # one chunk; chunks of 3 tokens and a rest; of one token
def test_gradient_is_that_of_indexing(monkeypatch, held):
    monkeypatch.setattr(embedding, "ONE_HOT_ELEMENTS", held)
    table, weight = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in ((0, (11, 5)), (1, (2, 7, 5))))
    tokens = jax.random.randint(jax.random.key(2), (2, 7), 0, 11)
    grad = jax.grad(lambda table: (embedding.lookup(table, tokens) * weight).sum())(table)
    expected = jax.grad(lambda table: (table[tokens] * weight).sum())(table)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-6)


def test_no_scatter_adds_rows_up():
    def loss(table):
        return embedding.lookup(table, jnp.zeros((2, 7), jnp.int32)).sum()

    assert "scatter" not in str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((11, 5))))
