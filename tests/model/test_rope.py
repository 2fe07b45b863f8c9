"""Rotary positions: a rotation of pairs, each slower than the one before."""

import jax
import jax.numpy as jnp
import numpy as np

from subq_jax.model.rope import apply_rope


def test_products_depend_on_the_distance_only():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in range(2))
    product = lambda p, s: float((apply_rope(q, jnp.array([p]), 100.0) * apply_rope(k, jnp.array([s]), 100.0)).sum())
    np.testing.assert_allclose(product(9, 4), product(25, 20), atol=1e-5)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3
    np.testing.assert_allclose(product(3, 3), float((q * k).sum()), atol=1e-5)


def test_pair_i_turns_by_base_to_the_minus_2i_over_h():
    position, base, head_dim = 3, 100.0, 8
    for i in range(head_dim // 2):
        x = jnp.zeros((1, 1, 1, head_dim)).at[..., i].set(1.0)  # pairs are (i, i + H / 2)
        turned = np.asarray(apply_rope(x, jnp.array([position]), base))[0, 0, 0]
        angle = position * base ** (-2 * i / head_dim)
        np.testing.assert_allclose(turned[[i, i + head_dim // 2]], [np.cos(angle), np.sin(angle)], atol=1e-6)
