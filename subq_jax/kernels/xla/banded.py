"""Attention of every query to a window right before it: local blocks and sliding windows.

Query tokens are cut into tiles of `m` rows. Tile i needs the keys from `reach` tokens before its first row up to its
last row; because tiles step by exactly m, all windows are shifted views of one slice of the keys:

    keys   |--r--|--0--|--1--|--2--|      one dynamic slice, `reach` tokens in front
    tile 0 [===========]                  window 0 = key tiles 0, 1
    tile 1       [===========]            window 1 = key tiles 1, 2
    tile 2             [===========]

The backward pass adds the windows' gradients back by the same shifts, so it needs no scatter.
Shapes: q [X, T, G, H], k and v [X, S, H], X = B * K; `lower` and `position` int32 [X, T]: a row sees the keys
`lower <= j <= position`, and nothing where `lower > position`. Memory is linear in T.
"""

import functools

import jax
import jax.numpy as jnp

from subq_jax.kernels.xla.grain import grain
from subq_jax.kernels.xla.layout import join_rows, split_rows
from subq_jax.kernels.xla.tile import row_delta, tile_backward, tile_forward

MIN_ROWS, MAX_ROWS = 64, 512  # query tokens of a tile: a quarter of the reach, so that windows hold the keys ~5 times


class Bands:
    """The cut of T queries at positions `offset` [X] ... into tiles, and of S keys into their windows."""

    def __init__(self, num_queries: int, num_keys: int, reach: int, offset):
        self.rows = min(num_queries, max(MIN_ROWS, min(MAX_ROWS, -(-reach // (4 * MIN_ROWS)) * MIN_ROWS)))
        self.tiles = -(-num_queries // self.rows)
        self.num_keys, self.offset = num_keys, offset
        self.reach = reach if self.tiles == 1 else -(-reach // self.rows) * self.rows
        self.window = self.reach + self.rows
        self.span = self.reach + self.tiles * self.rows  # keys of all windows together

    def split_keys(self, x):
        """[X, S, H] -> windows [tiles, X, window, H]."""
        x = jnp.pad(x, ((0, 0), (self.reach, self.tiles * self.rows), (0, 0)))
        x = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, self.span))(x, self.offset)
        if self.tiles == 1:
            return x[None]
        x = x.reshape(x.shape[0], -1, self.rows, x.shape[-1])
        shifted = [x[:, w : w + self.tiles] for w in range(self.window // self.rows)]
        return jnp.moveaxis(jnp.concatenate(shifted, axis=2), 1, 0)

    def join_keys(self, x):
        """The transpose of `split_keys`: gradients of windows -> [X, S, H], overlaps added in a fixed order."""
        if self.tiles == 1:
            x = x[0]
        else:
            x = jnp.moveaxis(x, 0, 1)
            x = x.reshape(*x.shape[:2], -1, self.rows, x.shape[-1])
            extra = x.shape[2] - 1
            x = sum(jnp.pad(x[:, :, w], ((0, 0), (w, extra - w), (0, 0), (0, 0))) for w in range(extra + 1))
            x = x.reshape(x.shape[0], -1, x.shape[-1])
        room = jnp.zeros((x.shape[0], self.reach + self.num_keys + self.tiles * self.rows, x.shape[-1]), x.dtype)
        place = jax.vmap(lambda row, part, start: jax.lax.dynamic_update_slice_in_dim(row, part, start, 0))
        return place(room, x, self.offset)[:, self.reach : self.reach + self.num_keys]

    def visible(self, lower, position, start):
        """Mask [X, m, 1, window] of a tile whose rows see `lower` ... `position`; `start` [X] is its first row."""
        key = start[:, None] - self.reach + jnp.arange(self.window)[None]
        key = key[:, None, None]
        return (key >= lower[:, :, None, None]) & (key <= position[:, :, None, None])

    def starts(self):
        """Position of the first row of every tile: [tiles, X]."""
        return self.offset[None] + self.rows * jnp.arange(self.tiles, dtype=jnp.int32)[:, None]

    def tiles_at_once(self, q) -> int:
        """How many tiles one step handles, so that its logits stay near the backend's grain."""
        return max(1, grain().band // (q.shape[0] * q.shape[2] * self.rows * self.window))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def banded_attention(reach: int, q, k, v, lower, position):
    """Attention to the window alone, [X, T, G, H] in `q`'s dtype; differentiable in q, k and v."""
    return _attend_forward(reach, q, k, v, lower, position)[0]


def _attend_forward(reach, q, k, v, lower, position):
    out, lse = banded_forward(q, k, v, lower, position, reach)
    out = out.astype(q.dtype)
    return out, (q, k, v, lower, position, out, lse)


def _attend_backward(reach, residuals, d_out):
    q, k, v, lower, position, out, lse = residuals
    grads = banded_backward(q, k, v, lower, position, reach, d_out, lse, row_delta(d_out, out))
    return *(g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True)), None, None


banded_attention.defvjp(_attend_forward, _attend_backward)


def banded_forward(q, k, v, lower, position, reach: int):
    """Returns float32 (out [X, T, G, H], lse [X, T, G]). `reach`: static bound on `position - lower`."""
    bands = Bands(q.shape[1], k.shape[1], reach, position[:, 0])

    def tile(args):
        q, k, v, lower, position, start = args
        return tile_forward(q, k, v, 0.0, bands.visible(lower, position, start))

    out, lse = jax.lax.map(tile, _tiles(bands, q, k, v, lower, position), batch_size=bands.tiles_at_once(q))
    return join_rows(out, q.shape[1]), join_rows(lse, q.shape[1])


def banded_backward(q, k, v, lower, position, reach: int, d_out, lse, delta):
    """Returns float32 (dq, dk, dv) of the window's part of a softmax with final `lse`."""
    bands = Bands(q.shape[1], k.shape[1], reach, position[:, 0])

    def tile(args):
        q, k, v, lower, position, start, d_out, lse, delta = args
        visible = bands.visible(lower, position, start)
        return tile_backward(q, k, v, 0.0, visible, d_out, lse, delta)[:3]

    rows = [split_rows(x, bands.rows) for x in (d_out, lse, delta)]
    inputs = (*_tiles(bands, q, k, v, lower, position), *rows)
    dq, dk, dv = jax.lax.map(tile, inputs, batch_size=bands.tiles_at_once(q))
    return join_rows(dq, q.shape[1]), bands.join_keys(dk), bands.join_keys(dv)


def _tiles(bands: Bands, q, k, v, lower, position):
    return (
        split_rows(q, bands.rows), bands.split_keys(k), bands.split_keys(v),
        split_rows(lower, bands.rows, fill=1), split_rows(position, bands.rows), bands.starts(),
    )
