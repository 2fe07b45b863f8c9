"""The language-modelling loss."""

import jax
import jax.numpy as jnp
import optax


def weighted_cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the weighted cross entropy, and the sum of the weights; divide for the mean in nats a token.

    Both sums are returned, so that chunks and shards add up exactly.

    Args:
      logits: [B, T, V]; computed on in float32 whatever their dtype.
      targets: int [B, T].
      weights: [B, T]; 0 leaves a position out.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    weights = weights.astype(jnp.float32)
    # A position left out must not reach the sum even when its loss is infinite: inf * 0 is NaN.
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0.0)), jnp.sum(weights)
