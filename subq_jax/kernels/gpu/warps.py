"""Tiles whose warps own their tokens: what the kernels share that let no token pay for its neighbours' blocks.

A tile is 12 warps of 16 rows, a row being a query head of a token; 16 heads make a warp's rows one token, 8 two, and 32
heads a token of two warps. The tile's blocks, the union of what its tokens list, pass through shared memory once; a
warp multiplies those that a token of its own lists and only frees the others. Of a block that enough warps of a
warpgroup see all four multiply at once, which reads it from shared memory once for all:

    blocks of the tile    ...  | b | b' | b'' | ...      a warpgroup of its own copies them
    warp 0  rows   0 .. 15       o         x
    warp 1  rows  16 .. 31       o    x
    warp 2  rows  32 .. 47       o    x    x
    warp 3  rows  48 .. 63       o         x             o: one product of the warpgroup, x: a product of the warp
    ...                          ...
    warp 11 rows 176 .. 191           x    x

Both lists descend, so that a warp keeps a place in each of its tokens' lists and compares the block there with the next
one of the tile. The programs of these kernels are written for a warpgroup, as Pallas' are, but the warps of one part
ways where a branch depends on `WarpTokens`: nothing on such a way may wait for the other warps. Whether a warpgroup
multiplies at once depends on the tile's list alone, which says of every block which warps see it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import tensor_core
from subq_jax.kernels.gpu.persistent import drain, for_each_item, matrix
from subq_jax.kernels.gpu.softmax import LOG2E, UNSEEN, hide_later
from subq_jax.kernels.gpu.tensor_core import ROWS

WARP_ROWS, COMPUTING_WARPS = 16, 12  # rows of a warp's products, warps that compute
WARPS_AT_ONCE = 4  # warps of a warpgroup; one in the simulator, where a warpgroup's warps cannot part ways
STEP_KEYS = 64  # positions of a step at most: what registers hold beside a warp's sums
WARP_REGISTERS = 160, 24  # of a thread that computes, of one that copies


class Products(NamedTuple):
    """Products of a warpgroup's 64 rows: by all four warps at once, or by a warp for its own 16."""

    at_once: bool

    def scores(self, left, right):
        return tensor_core.scores(left, right) if self.at_once else tensor_core.warp_scores(left, right)

    def add(self, total, weights, values):
        add = tensor_core.add_product if self.at_once else tensor_core.add_warp_product
        return add(total, weights, values)


class WarpTile(NamedTuple):
    """Static sizes of a tile."""

    group: int  # rows of a token, from 8 to 32
    block: int  # positions

    @property
    def tokens(self) -> int:
        return COMPUTING_WARPS * WARP_ROWS // self.group

    @property
    def workers(self) -> int:
        """Warpgroups that compute."""
        return COMPUTING_WARPS // WARPS_AT_ONCE

    @property
    def warpgroup_rows(self) -> int:
        """Rows of a warpgroup."""
        return WARPS_AT_ONCE * WARP_ROWS

    @property
    def tokens_per_warp(self) -> int:
        """Tokens of which a warp has rows."""
        return max(1, WARP_ROWS // self.group)

    @property
    def warps_per_token(self) -> int:
        """Warps that have rows of one token."""
        return max(1, self.group // WARP_ROWS)

    @property
    def keys(self) -> int:
        """Positions of a step: of a block, or of a part of a large one."""
        return min(self.block, STEP_KEYS)

    @property
    def parts(self) -> int:
        """Steps of a block."""
        return self.block // self.keys

    def warps_of(self, token: int) -> int:
        """The warps that have rows of a tile's token, a bit for each."""
        first = token * self.group // WARP_ROWS
        return ((1 << self.warps_per_token) - 1) << first

    def start(self, tile, tokens: int):
        """A tile's first token of so many; the last tile may repeat some of the one before."""
        return jnp.minimum(tile * self.tokens, tokens - self.tokens)

    def rows(self, tile, warpgroup, tokens: int):
        """Where a warpgroup's rows of a tile stand among those of so many tokens."""
        return pl.ds(self.start(tile, tokens) * self.group + warpgroup * self.warpgroup_rows, self.warpgroup_rows)

    def rings(self, room: int, head_dim: int, dtype) -> dict:
        """Shared memory for keys and values of as many steps as `room` bytes hold, and its barriers."""
        stages = room // (2 * self.keys * head_dim * dtype.itemsize)
        return {
            "k_ring": matrix(stages, self.keys, head_dim, dtype=dtype),
            "v_ring": matrix(stages, self.keys, head_dim, dtype=dtype),
            "full": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            "free": plgpu.Barrier(num_arrivals=self.workers, num_barriers=stages),
        }


def group_rows(heads: int) -> int:
    """Rows of a token: its query heads filled up to a power of 2, and to the 8 rows that a copy can place."""
    return max(8, 1 << (heads - 1).bit_length())


def pack_block(block, warps):
    """A block of a tile, and the warps that see it, a bit for each, as one number."""
    return (block << COMPUTING_WARPS) | warps


def unpack_block(packed):
    """The block and the warps of `pack_block`."""
    return lax.shift_right_logical(packed, jnp.int32(COMPUTING_WARPS)), packed & ((1 << COMPUTING_WARPS) - 1)


class Step(NamedTuple):
    """One of a tile's steps."""

    slot: jax.Array  # of the ring
    part: jax.Array  # of its block
    key: jax.Array  # position of the first
    products: Products  # of a warp or of its whole warpgroup


class WarpTokens:
    """The tokens that the rows of this warp belong to.

    Attributes:
      share: which of its token's warps it is.
    """

    def __init__(self, shape: WarpTile, warpgroup, ids, gates):
        warp = warpgroup * WARPS_AT_ONCE + tensor_core.warp_of_thread()
        self._shape, self._ids, self._gates = shape, ids, gates
        self._first = lax.div(warp * WARP_ROWS, jnp.int32(shape.group))
        self.share = lax.rem(warp, jnp.int32(shape.warps_per_token))
        self._second = None  # 1 for rows of the warp's second token
        if shape.tokens_per_warp > 1:
            row = plgpu.broadcasted_iota(jnp.int32, (shape.warpgroup_rows,), 0, layout=ROWS) & (WARP_ROWS - 1)
            self._second = (row >= shape.group).astype(jnp.int32)

    def of_tile(self, x, tile) -> "TokensOfTile":
        first = self._shape.start(tile, self._ids.shape[1]) + self._first
        return TokensOfTile(x, [first + j for j in range(self._shape.tokens_per_warp)], self, self._ids, self._gates)

    def positions(self, first):
        """Of the rows, where the warp's first token is at `first`: int32 [rows], or one for all."""
        return first if self._second is None else self._second + first

    def spread(self, numbers):
        """One number for each of the warp's tokens -> one for each of its rows, or for all where there is one token."""
        if self._second is None:
            return numbers[0]
        second = self._second.astype(jnp.float32)
        return (1 - second) * numbers[0] + second * numbers[1]


class TokensOfTile:
    """A warp's tokens in one tile: their numbers, `each` and `first`, and their lists."""

    def __init__(self, x, each: list, mine: WarpTokens, ids, gates):
        self.first, self.each, self._x, self._mine, self._ids, self._gates = each[0], each, x, mine, ids, gates

    def entries_at(self, places):
        """The blocks at a place of every token's list, -1 behind its end, and their gates as powers of 2."""
        slots = self._ids.shape[2]
        inside = [jnp.minimum(place, slots - 1) for place in places]
        read = lambda of: [of[self._x, token, place] for token, place in zip(self.each, inside, strict=True)]
        ids = [jnp.where(place < slots, b, -1) for place, b in zip(places, read(self._ids), strict=True)]
        return ids, [gate * LOG2E for gate in read(self._gates)]

    def spread(self, here, gates):
        """The gates of the rows whose token sees the block, and what hides it from the others."""
        return self._mine.spread([jnp.where(some, x, UNSEEN) for some, x in zip(here, gates, strict=True)])


def enough(warps, warpgroup, min_warps: int):
    """Whether `min_warps` warps of a warpgroup are among those that see a block."""
    mine = lax.shift_right_logical(warps, warpgroup * WARPS_AT_ONCE) & ((1 << WARPS_AT_ONCE) - 1)
    return sum((mine >> i) & 1 for i in range(WARPS_AT_ONCE)) >= min_warps


class BlockWalk:
    """The walk over the blocks of tiles, through a ring that the copying warpgroup fills and all others free.

    Blocks that `min_warps` warps of a warpgroup see it multiplies at once.
    """

    def __init__(self, shape: WarpTile, entries, blocks, full, free, stages: int, min_warps: int):
        self._shape, self._entries, self._blocks, self._full, self._free = shape, entries, blocks, full, free
        self._slot = lambda step: lax.rem(step, jnp.int32(stages))
        self._stages, self._min_warps = stages, min_warps

    def steps(self, x, tile):
        return self._entries[x, tile] * self._shape.parts

    def _block(self, x, tile, step):
        """A step's block, and the warps that see it."""
        entry = lax.div(step, jnp.int32(self._shape.parts))
        return unpack_block(self._blocks[x, tile, jnp.minimum(entry, self._entries[x, tile] - 1)])

    def _part(self, step):
        return lax.rem(step, jnp.int32(self._shape.parts))

    def each(self, x, tile, ring, warpgroup, tokens: TokensOfTile, look: Callable, state):
        """`state = look(step, here, places, gate, state)` for every step that one of the warp's tokens sees.

        And for those of which the whole warpgroup makes its products at once.

        Args:
          ring: steps of this block of threads before the tile.
          warpgroup: which one runs this.
          look: is told the step, which of the tokens see it, their places in their lists and the rows' gates.
          state: arrays.

        Returns:
          the last state.
        """
        def step(s, carry):
            (block, warps), lists, state = carry
            slot, following, part = self._slot(ring + s), self._block(x, tile, s + 1), self._part(s)  # a step ahead
            here = [listed == block for listed in lists[1]]  # lists are places, ids there, gates
            some = here[0] | here[-1]  # a warp has one token or two
            plgpu.barrier_wait(self._full.at[slot])

            def take(products, places, ids, gates, state):
                last = part == self._shape.parts - 1
                after = [place + (seen & last).astype(jnp.int32) for place, seen in zip(places, here, strict=True)]
                upcoming = tokens.entries_at(after)  # on its way while products are computed
                key = block * self._shape.block + part * self._shape.keys
                seen = Step(slot, part, key, products)
                return after, *upcoming, look(seen, here, places, tokens.spread(here, gates), state)

            together, alone = (functools.partial(take, Products(at_once)) for at_once in (True, False))
            skip = lambda *x: x
            apart = lambda *x: lax.cond(some, alone, skip, *x)
            if self._shape.keys < STEP_KEYS:  # too few for a warpgroup's product with values
                *lists, state = apart(*lists, state)
            else:
                many, few = enough(warps, warpgroup, self._min_warps), skip if self._min_warps == 1 else apart
                *lists, state = lax.cond(many, together, few, *lists, state)
            plgpu.barrier_arrive(self._free.at[slot])
            return following, tuple(lists), state

        places = [jnp.int32(0)] * self._shape.tokens_per_warp
        carry = self._block(x, tile, jnp.int32(0)), (places, *tokens.entries_at(places)), state
        return lax.fori_loop(jnp.int32(0), self.steps(x, tile), step, carry)[2]

    def copy_tiles(self, ctas: int, rows_of: Callable, rows, full, free, rings):
        """What the warpgroup that copies does: the rows of every tile, as their places come free, and its blocks.

        Args:
          ctas: blocks of threads that share the tiles.
          rows_of: the rows of a tile that a warpgroup computes.
          rows: (source [X, P * G, H], its place in shared memory for each warpgroup) of each array.
          full, free: barriers of those places.
          rings: (source [X, S, H], its ring) of keys and values.
        """
        workers = rows[0][1].shape[0]

        def one_tile(x, tile, number, ring):
            for worker in range(workers):
                @pl.when(number > 0)
                def _(worker=worker):
                    plgpu.barrier_wait(free.at[worker])

                for source, target in rows:
                    plgpu.copy_gmem_to_smem(source.at[x, rows_of(tile, worker)], target.at[worker], full.at[worker])
            return self._fetch(x, tile, ring, rings)

        _, ring = for_each_item(*self._entries.shape, ctas, one_tile, jnp.int32(0))
        drain(self._stages, ring, self._free)
        for worker in range(workers):
            plgpu.barrier_wait(free.at[worker])

    def _fetch(self, x, tile, ring, rings):
        """Copies a tile's blocks; -> the steps of this block of threads after it."""
        keys = self._shape.keys

        def fetch(s, block):
            slot, following = self._slot(ring + s), self._block(x, tile, s + 1)[0]
            rows = pl.ds(block * self._shape.block + self._part(s) * keys, keys)

            @pl.when(ring + s >= self._stages)
            def _():
                plgpu.barrier_wait(self._free.at[slot])

            for source, target in rings:
                plgpu.copy_gmem_to_smem(source.at[x, rows], target.at[slot], self._full.at[slot])
            return following

        steps = self.steps(x, tile)
        lax.fori_loop(jnp.int32(0), steps, fetch, self._block(x, tile, jnp.int32(0))[0])
        return ring + steps


def hide_future(logits, step: Step, keys: int, tokens: WarpTokens, first):
    """`hide_later`, for the few steps whose `keys` positions reach beyond the warp's first token, at `first`."""
    hide = lambda logits: hide_later(logits, tokens.positions(first), step.key)
    return lax.cond(step.key + keys > first, hide, lambda logits: logits, logits)
