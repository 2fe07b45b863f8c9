"""Token embedding whose gradient is the same bits every time.

The gradient of a table lookup adds rows up, and an accelerator's scatter does that with atomics in any order. Here it
is a matrix product with one-hot tokens, at the cost of the output layer's own weight gradient.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from subq_jax.axes import Activations, Tokens

ONE_HOT_ELEMENTS = 1 << 27  # one-hot entries held at a time


class Embedding(nnx.Embed):
    """`nnx.Embed` with the deterministic gradient of `lookup`."""

    def __call__(self, tokens: Tokens) -> Activations:
        """Embeds int32 tokens [B, T]: [B, T, D]."""
        return lookup(self.embedding[...].astype(self.dtype), tokens)


@jax.custom_vjp
def lookup(table, tokens: Tokens) -> Activations:
    """Rows of table [V, D] at tokens [B, T], ids in [0, V); an id beyond the table gives NaN, as `jnp.take` does."""
    return jnp.take(table, tokens, axis=0)


def _lookup_forward(table, tokens):
    return lookup(table, tokens), (table, tokens)


def _lookup_backward(residuals, d_out):
    table, tokens = residuals
    (batch, length), vocab_size = tokens.shape, table.shape[0]

    def count(tokens, d_out):
        hot = jax.nn.one_hot(tokens, vocab_size, dtype=d_out.dtype)
        return jnp.einsum("btv,btd->vd", hot, d_out, precision=jax.lax.Precision.HIGHEST,
                          preferred_element_type=jnp.float32)

    rows = max(1, ONE_HOT_ELEMENTS // (batch * vocab_size))
    total = jnp.zeros(table.shape, jnp.float32)
    chunks = length // rows
    if chunks > 1:
        split = lambda x: jnp.moveaxis(x[:, : chunks * rows].reshape(batch, chunks, rows, *x.shape[2:]), 1, 0)
        total, _ = jax.lax.scan(lambda sums, part: (sums + count(*part), None), total, (split(tokens), split(d_out)))
        tokens, d_out = tokens[:, chunks * rows :], d_out[:, chunks * rows :]
    return (total + count(tokens, d_out)).astype(table.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)
