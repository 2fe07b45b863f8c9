"""Attention of tiles of neighbouring queries to the blocks that any of them sees, on the TPU.

A grid step owns the `m` query tokens of a tile and their G heads: 128 rows, which stand on the lanes. It walks over the
tile's list of blocks, `step` blocks at a time, which it copies from HBM itself, several copies ahead of the arithmetic:

                 128 rows (token, head)                       keys and values of the listed blocks, in HBM
    keys of    [                      ]     copies   ring of       | b3 | b17 | b18 | b40 | ...
    4 blocks   [   logits, weights    ]   <--------  `depth`  <----- one copy a block, keys and values together
    256 keys   [                      ]              steps

    top, total [ one lane for a row   ]     out^T [H, 128 rows], turned once, at the end

A query takes part in a block only if the block is on its own list: one comparison of the tile's [J, 128] ids with the
block's id gives the rows that see it, and a sum over the same mask gives their gates. So there is no table of (query,
listed block), neighbours cost no copies of their own, and one softmax runs over sink, local and selected blocks. With
queries on the lanes the queries are what the matrix unit keeps, for all blocks of the list, and a row's maximum and sum
are plain vector operations.

Blocks are added one at a time, in ascending order, and one that a row does not see adds exact zeros: a row's bits are
those of its own blocks, whatever its neighbours chose. Adding a step's blocks at once would save multiplications and
let the choice of a later token show through in the rounding of an earlier one's output.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu.limits import LANES
from subq_jax.kernels.xla.tile import NO_KEYS
from subq_jax.selection.choose import matmul_precision

HIDDEN = float(jnp.finfo(jnp.float32).min)
NOTHING = 2 * NO_KEYS  # below every gate, above what is hidden: exp(HIDDEN - NOTHING) is 0


class AttendSizes(NamedTuple):
    """Static sizes: rows (token, head) of a tile, keys handled at a time, steps whose keys are on their way."""

    rows: int = LANES
    keys: int = 256
    depth: int = 8

    def tokens(self, group: int) -> int:
        return 1 << max(1, self.rows // group).bit_length() - 1  # a power of two, so that tiles lie in one row of lanes

    def step(self, block_size: int) -> int:
        """Blocks of a step."""
        return max(1, self.keys // block_size)


class Lanes(NamedTuple):
    """What queries see, a query on each lane: ids int32 [X, J, P], gates float32 [X, J, P], position int32 [B, 1, P].

    P is T rounded up to whole lanes; queries beyond T list no block.
    """

    ids: jax.Array
    gates: jax.Array
    position: jax.Array


def attend_forward(q, blocks, lanes: Lanes, lists, sizes: AttendSizes):
    """One softmax over all listed blocks.

    Args:
      q: [X, T, G, H].
      blocks: [X, NB, 2, c, H], keys and values of every block, zero where absent.
      lanes: what each query sees.
      lists: the tiles' unions from `tile_lists`.
      sizes: static sizes.

    Returns:
      out [X, T, G, H] in `q`'s dtype, lse float32 [X, T, G].
    """
    (rows, queries, group, head_dim), size = q.shape, blocks.shape[3]
    tokens, tiles = sizes.tokens(group), lists.shape[1]
    width, step = tokens * group, sizes.step(size)
    kv_heads = rows // lanes.position.shape[0]
    q = jnp.pad(q, ((0, 0), (0, tiles * tokens - queries), (0, 0), (0, 0))).reshape(rows, tiles * width, head_dim)
    of_lanes = lambda array: pl.BlockSpec((1, array.shape[1], LANES), lambda x, t: (x, 0, t * tokens // LANES))
    tile = pl.BlockSpec((1, width, head_dim), lambda x, t: (x, t, 0))
    out, lse = pl.pallas_call(
        functools.partial(_kernel, group=group),
        grid=(rows, tiles),
        in_specs=[
            pl.BlockSpec((1, 1, 1, lists.shape[-1]), lambda x, t: (x, t, 0, 0), memory_space=pltpu.SMEM),
            of_lanes(lanes.ids), of_lanes(lanes.gates),
            pl.BlockSpec((1, 1, LANES), lambda x, t: (x // kv_heads, 0, t * tokens // LANES)),
            tile, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=[tile, pl.BlockSpec((1, 1, 1, width), lambda x, t: (x, t, 0, 0))],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype),
                   jax.ShapeDtypeStruct((rows, tiles, 1, width), jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM((sizes.depth, 2, step * size, head_dim), q.dtype),
            pltpu.VMEM((head_dim, width), jnp.float32),
            pltpu.SemaphoreType.DMA((sizes.depth,))],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="attend_listed_blocks",
    )(lists, *lanes, q, blocks)
    out = out.reshape(rows, tiles * tokens, group, head_dim)[:, :queries]
    return out, lse.reshape(rows, tiles * tokens, group)[:, :queries]


def _kernel(list_ref, ids_ref, gates_ref, position_ref, q_ref, blocks_ref, out_ref, lse_ref, ring, acc, arrived, *,
            group: int):
    size, width, head_dim = blocks_ref.shape[3], *q_ref.shape[1:]
    copies = Ring(list_ref, blocks_ref.at[pl.program_id(0)], ring, arrived)
    spread = spread_rows(pl.program_id(1) * (width // group), group, width)
    ids, position = (over_rows(x, spread).astype(jnp.int32) for x in (ids_ref[0], position_ref[0]))
    gates = over_rows(gates_ref[0], spread)
    q, precision = q_ref[0], matmul_precision(q_ref.dtype)
    key = jax.lax.broadcasted_iota(jnp.int32, (size, width), 0)
    acc[...] = jnp.zeros_like(acc)

    def body(i, carry):
        top, total = carry
        keys, values = copies.take(i)
        logits = jax.lax.dot_general(keys, q, (((1,), (1,)), ((), ())), precision=precision,
                                     preferred_element_type=jnp.float32) * head_dim**-0.5
        for n, block in enumerate(copies.blocks(i)):
            part = slice(n * size, (n + 1) * size)
            seen, gate = rows_of_block(block, ids, gates)
            visible = seen & (block * size + key <= position)
            shifted = jnp.where(visible, logits[part] + gate, HIDDEN)
            higher = jnp.maximum(top, jnp.max(shifted, axis=0, keepdims=True))
            weights, shrink = jnp.exp(shifted - higher), jnp.exp(top - higher)
            acc[...] = acc[...] * shrink + jax.lax.dot_general(
                values[part], weights.astype(values.dtype), (((0,), (0,)), ((), ())), precision=precision,
                preferred_element_type=jnp.float32)
            total = total * shrink + jnp.sum(weights, axis=0, keepdims=True)
            top = higher
        return top, total

    start = jnp.full((1, width), NOTHING), jnp.zeros((1, width))
    top, total = copies.run(body, start)
    out = acc[...] / jnp.maximum(total, 1e-37)
    out_ref[0] = out.T.astype(out_ref.dtype)
    lse_ref[0, 0] = jnp.where(total > 0, top + jnp.log(jnp.maximum(total, 1e-37)), NO_KEYS)


class Ring:
    """Copies of listed blocks, `depth` steps ahead. `list_ref` is the tile's list, `source` [NB, 2, c, H] in HBM."""

    def __init__(self, list_ref, source, ring, arrived):
        self.list, self.source, self.ring, self.arrived = list_ref, source, ring, arrived
        self.depth, self.size = ring.shape[0], source.shape[2]
        self.step = ring.shape[2] // self.size
        self.steps = pl.cdiv(list_ref[0, 0, 0, 0], self.step)

    def blocks(self, i):
        """The ids of step i; -1 behind the list's end."""
        return [self.list[0, 0, 0, 1 + i * self.step + n] for n in range(self.step)]

    def _copies(self, i):
        slot = jax.lax.rem(i, self.depth)
        for n, block in enumerate(self.blocks(i)):
            block = jnp.clip(block, 0, self.source.shape[0] - 1)  # some block behind the end, so that all can be read
            into = self.ring.at[slot, :, pl.ds(n * self.size, self.size)]
            yield pltpu.make_async_copy(self.source.at[block], into, self.arrived.at[slot])

    def _start(self, i):
        @pl.when(i < self.steps)
        def _():
            for copy in self._copies(i):
                copy.start()

    def take(self, i):
        """Keys and values [step * c, H] of step i, once they are there."""
        for copy in self._copies(i):
            copy.wait()
        slot = jax.lax.rem(i, self.depth)
        return self.ring[slot, 0], self.ring[slot, 1]

    def run(self, body, carry):
        """Runs `body(i, carry)` over all steps, copies for later ones under way."""
        for i in range(self.depth - 1):
            self._start(i)

        def step(i, carry):
            self._start(i + self.depth - 1)
            return body(i, carry)

        return jax.lax.fori_loop(0, self.steps, step, carry)


def spread_rows(first, group: int, width: int):
    """float32 [LANES, width], 1 where a row (token, head) belongs to a lane's query; the tile's first is `first`."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (LANES, width), 0)
    row = jax.lax.broadcasted_iota(jnp.int32, (LANES, width), 1)
    return (lane == jax.lax.rem(first, LANES) + row // group).astype(jnp.float32)


def over_rows(x, spread):
    """x [J, LANES] of queries -> float32 [J, width] of rows; exact for integers below 2^24."""
    return jax.lax.dot_general(x.astype(jnp.float32), spread, (((1,), (0,)), ((), ())),
                               precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def rows_of_block(block, ids, gates):
    """Which rows list `block`, bool [1, width], and their gates of it, float32 [1, width]."""
    listed = (ids == block) & (block >= 0)
    seen = jnp.max(listed.astype(jnp.int32), axis=0, keepdims=True) > 0
    return seen, jnp.sum(jnp.where(listed, gates, 0.0), axis=0, keepdims=True)
