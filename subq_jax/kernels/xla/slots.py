"""Attention to a window and to slots, the summaries of the blocks before: one softmax over both.

A slot never changes before it is overwritten, so the n slots that a query finds are the summaries of the n blocks
before its own. All queries of a block find the same ones: with whole blocks of queries as rows, the slots are a band of
their own, in which summary b stands at key b + 1:

    blocks of queries        0      1      2      3
    visible summaries        -      0     0 1    1 2        (n = 2)

Queries may start in the middle of a block; they are laid into a buffer of whole blocks first. Shapes: q [X, T, G, H],
k and v [X, S, H], slot_k and slot_v [X, NB, H]; X = B * K.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.banded import banded_backward, banded_forward
from subq_jax.kernels.xla.tile import NO_KEYS, merge, row_delta

_LAST = 2**31 - 1  # a block behind all others


class Bounds(NamedTuple):
    """What rows see: int32 [X, T] each, `exists` bool."""

    lower: jax.Array  # first position of the window, beyond `position` where a row sees nothing
    position: jax.Array
    first_block: jax.Array  # of the row's document
    exists: jax.Array


class Sizes(NamedTuple):
    """Static sizes: positions of the window, slots, tokens of a block."""

    window: int
    slots: int
    block: int


class _Blocks:
    """T query rows laid into whole blocks."""

    def __init__(self, sizes: Sizes, bounds: Bounds):
        self.size, (rows, self.queries) = sizes.block, bounds.position.shape
        self.count = -(-self.queries // self.size) + 1
        self.start = bounds.position[:, 0] % self.size
        block = bounds.position[:, :1] // self.size + jnp.arange(self.count, dtype=jnp.int32)[None]
        first = self.lay(jnp.where(bounds.exists, bounds.first_block, _LAST), fill=_LAST)
        first = first.reshape(rows, self.count, self.size).min(axis=-1)
        self.position = block
        self.lower = jnp.maximum(jnp.minimum(first, block), block - sizes.slots) + 1

    def lay(self, x, fill=0):
        """[X, T, ...] -> [X, count * size, ...]."""
        room = jnp.full((x.shape[0], self.count * self.size, *x.shape[2:]), fill, x.dtype)
        return jax.vmap(lambda room, x, start: jax.lax.dynamic_update_slice_in_dim(room, x, start, 0))(
            room, x, self.start)

    def split(self, x, fill=0):
        """[X, T, G, ...] -> [X, count, size * G, ...]: a row for each block."""
        x = self.lay(x, fill)
        return x.reshape(x.shape[0], self.count, self.size * x.shape[2], *x.shape[3:])

    def join(self, x, group: int):
        """The inverse of `split`."""
        x = x.reshape(x.shape[0], self.count * self.size, group, *x.shape[3:])
        take = lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, self.queries)
        return jax.vmap(take)(x, self.start)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def slot_attention(sizes: Sizes, q, k, v, slot_k, slot_v, bounds: Bounds):
    """Attention to the window and the slots, [X, T, G, H] in `q`'s dtype."""
    return _attend_forward(sizes, q, k, v, slot_k, slot_v, bounds)[0]


def _attend_forward(sizes, q, k, v, slot_k, slot_v, bounds):
    blocks = _Blocks(sizes, bounds)
    window = banded_forward(q, k, v, bounds.lower, bounds.position, sizes.window - 1)
    out, lse = banded_forward(blocks.split(q), _shift(slot_k), _shift(slot_v), blocks.lower, blocks.position,
                              sizes.slots - 1)
    lse = jnp.where(bounds.exists[..., None], blocks.join(lse, q.shape[2]), NO_KEYS)
    out, lse = merge([window, (blocks.join(out, q.shape[2]), lse)])
    out = out.astype(q.dtype)
    return out, (q, k, v, slot_k, slot_v, bounds, out, lse)


def _attend_backward(sizes, residuals, d_out):
    q, k, v, slot_k, slot_v, bounds, out, lse = residuals
    blocks, delta = _Blocks(sizes, bounds), row_delta(d_out, out)
    window = banded_backward(q, k, v, bounds.lower, bounds.position, sizes.window - 1, d_out, lse, delta)
    # Rows that see nothing stand in a block whose other rows do: an infinite normaliser leaves them out.
    hidden = jnp.where(bounds.exists[..., None], lse, -NO_KEYS)
    rows = (blocks.split(d_out), blocks.split(hidden, fill=-NO_KEYS), blocks.split(delta))
    slots = banded_backward(blocks.split(q), _shift(slot_k), _shift(slot_v), blocks.lower, blocks.position,
                            sizes.slots - 1, *rows)
    dq = window[0] + blocks.join(slots[0], q.shape[2])
    grads = (dq, *window[1:], *(d[:, 1:] for d in slots[1:]))
    return *(g.astype(x.dtype) for g, x in zip(grads, (q, k, v, slot_k, slot_v), strict=True)), None


slot_attention.defvjp(_attend_forward, _attend_backward)


def _shift(summaries):
    """Summaries [X, NB, H] with b at b + 1."""
    return jnp.pad(summaries, ((0, 0), (1, 0), (0, 0)))
