"""What the attention kernels share: a tile of neighbouring queries, what its rows see, and blocks on their way to it.

The rows (token, head) of a tile stand on the lanes. Which blocks a token lists is a row of `seen`, one line of lanes:

    seen [X, P, L] float32       ids of J blocks | their gates | router query       -1 for no block

P is T rounded up to whole tiles; tokens beyond T list no block. Ids are held as float32, exact up to 2^24 blocks.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.xla.tile import NO_KEYS
from subq_jax.selection.choose import matmul_precision

LANES, SUBLANES = 128, 8
VMEM = 16 << 20  # bytes that every generation gives a kernel without being asked
HIDDEN = float(jnp.finfo(jnp.float32).min)
# Every copy's place is clipped to its array; to check it again would be 8 of the 20 bundles that start a copy.
PARALLEL = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), disable_bounds_checks=True)
NOTHING = 2 * NO_KEYS  # below every gate, above what is hidden: exp(HIDDEN - NOTHING) is 0


class AttendSizes(NamedTuple):
    """Static sizes: rows (token, head) of a tile, keys handled at a time, steps whose keys are on their way."""

    rows: int = LANES
    keys: int = 1024
    depth: int = 4
    tiles: int = 8  # tiles of queries that a key block handles at a time
    room: int = 4 << 20  # bytes of VMEM for what is on its way, half as many for products of queries and keys

    def tokens(self, group: int) -> int:
        """Query tokens of a tile: a power of two, whole sublanes."""
        return 1 << max(SUBLANES, self.rows // group).bit_length() - 1

    def step(self, block_size: int) -> int:
        """Blocks of a step: they are unrolled, so that many small ones would fill VMEM with what is held of each."""
        return max(1, min(16, self.keys // block_size))

    def fit(self, group: int, head_dim: int, itemsize: int) -> "AttendSizes":
        """With as many keys and tiles as there is room for; wide heads and large groups take fewer."""
        width, line = self.tokens(group) * group, head_dim * itemsize
        keys = min(self.keys, self.room // (2 * self.depth * line), self.room // (8 * width))
        return self._replace(keys=keys, tiles=max(1, min(self.tiles, self.room // (2 * self.depth * width * line))))

    def vmem(self, group: int, head_dim: int, itemsize: int, block_size: int, lanes: int) -> int:
        """About the bytes of VMEM that the hungriest kernel needs; a fifth is for what the compiler spills."""
        tokens = self.tokens(group)
        width, keys, line = tokens * group, self.step(block_size) * block_size, head_dim * itemsize
        seen = 4 * tokens * lanes
        backward_queries = (2 * self.depth * keys + 6 * width) * line + 8 * width * (keys + head_dim) + 2 * seen
        of_tile = 2 * width * (line + 16) + seen
        backward_keys = self.depth * self.tiles * of_tile + 8 * block_size * (line + head_dim + 2 * width)
        return max(backward_queries, backward_keys) * 5 // 4


class Slots(NamedTuple):
    """Where things stand in a line of `seen`: J blocks, of which the first `always` are not selected, then R."""

    count: int
    always: int
    router: int

    @property
    def lanes(self) -> int:
        return math.ceil((2 * self.count + self.router) / LANES) * LANES


class TileOfQueries:
    """What the rows of one tile see; `seen` [m, L] is its part of the array, `first` the index of its first line.

    With `kv_heads` above 1 each token has as many lines, and the keys of a position as many rows: one for every head.
    """

    def __init__(self, seen, offset, first, group: int, slots: Slots, kv_heads: int = 1):
        tokens, width = seen.shape[0], seen.shape[0] * group
        self.ids, self.gates = seen[:, : slots.count], seen[:, slots.count : 2 * slots.count]
        router = slice(2 * slots.count, 2 * slots.count + slots.router)
        self.router = seen[:, router] if slots.router else None  # the compiler takes no array without elements
        self.selected = jax.lax.broadcasted_iota(jnp.int32, self.ids.shape, 1) >= slots.always
        row = jax.lax.broadcasted_iota(jnp.int32, (tokens, width), 1) // group
        self.mine = row == jax.lax.broadcasted_iota(jnp.int32, (tokens, width), 0)
        line = first + jax.lax.broadcasted_iota(jnp.int32, (1, width), 1) // group
        self.position, self.head, self.kv_heads = offset + line // kv_heads, line % kv_heads, kv_heads

    def lists(self, block):
        """Which tokens list `block` in which slot, bool [m, J]; none where `block` is negative."""
        return self.ids == jnp.where(block < 0, -2, block).astype(jnp.float32)

    def gates_of(self, block):
        """The gate of `block` for every row [1, width], `HIDDEN` for rows that do not list it."""
        of_token = jnp.max(jnp.where(self.lists(block), self.gates, HIDDEN), axis=1, keepdims=True)
        return jnp.max(jnp.where(self.mine, of_token, HIDDEN), axis=0, keepdims=True)

    def logits(self, products, block, head_dim: int):
        """Logits [c, width] of `block`, from its keys' `products` with the queries; `HIDDEN` where not visible."""
        row = block * products.shape[0] + jax.lax.broadcasted_iota(jnp.int32, products.shape, 0)
        gates = self.gates_of(block)
        # Hidden by selection, not by the sum with `HIDDEN`: a cache's absent keys may be NaN.
        last = jnp.where(gates == HIDDEN, jnp.iinfo(jnp.int32).min, self.position)
        visible = row // self.kv_heads <= last
        if self.kv_heads > 1:
            visible &= row % self.kv_heads == self.head
        return jnp.where(visible, products * head_dim**-0.5 + gates, HIDDEN)

    def over_heads(self, row):
        """Sums [1, width] over each token's heads: [m, 1]."""
        return jnp.sum(jnp.where(self.mine, row, 0.0), axis=1, keepdims=True)


def product(a, b, over: tuple[int, int]):
    """`a` times `b`, contracted over one axis of each, in float32; float32 inputs at full precision."""
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), precision=matmul_precision(a.dtype),
                               preferred_element_type=jnp.float32)


class Ring:
    """Copies from HBM that run up to `depth - 1` steps ahead of the arithmetic.

    `copies(i, slot)` lists the copies of step i as (source, destination) pairs; all of a slot signal `arrived[slot]`.
    """

    def __init__(self, steps, depth: int, arrived, copies):
        self.steps, self.depth, self.arrived, self.copies = steps, depth, arrived, copies

    def _each(self, i):
        slot = jax.lax.rem(i, self.depth)
        return [pltpu.make_async_copy(*pair, self.arrived.at[slot]) for pair in self.copies(i, slot)]

    def _start(self, i):
        @pl.when(i < self.steps)
        def _():
            for copy in self._each(i):
                copy.start()

    def run(self, body, carry):
        """Runs `body(i, slot, carry)` over all steps, each once its copies are there."""
        for i in range(self.depth - 1):
            self._start(jnp.int32(i))

        def step(i, carry):
            self._start(i + self.depth - 1)
            for copy in self._each(i):
                copy.wait()
            return body(i, jax.lax.rem(i, self.depth), carry)

        return jax.lax.fori_loop(0, self.steps, step, carry)


class ListedBlocks:
    """The blocks of a tile's list, `step` at a time; `list_ref` [1, 1, 1, 1 + room], `ring` [depth, 2, step * rows, H].

    `fetch(block, room)` lists the copies, as (source, destination), of the keys and values of one of the `count` blocks
    to its part of the ring, [2, rows, H].
    """

    def __init__(self, list_ref, ring, arrived, rows: int, count: int, fetch):
        self.list, self.ring, self.rows, self.last, self.fetch = list_ref, ring, rows, count - 1, fetch
        self.step = ring.shape[2] // rows
        self.copies = Ring(pl.cdiv(list_ref[0, 0, 0, 0], self.step), ring.shape[0], arrived, self._copies)

    def _ids(self, i):
        return [self.list[0, 0, 0, 1 + i * self.step + n] for n in range(self.step)]

    def _copies(self, i, slot):
        """Behind the list's end some block is copied, so that all of the ring can be read."""
        return [pair for n, block in enumerate(self._ids(i)) for pair in self.fetch(
            jnp.clip(block, 0, self.last), self.ring.at[slot, :, pl.ds(n * self.rows, self.rows)])]

    def run(self, body, carry):
        """Runs `body(blocks, keys, values, carry)`; keys and values [step * rows, H], -1 for blocks behind the end."""
        return self.copies.run(
            lambda i, slot, carry: body(self._ids(i), self.ring[slot, 0], self.ring[slot, 1], carry), carry)

    def part(self, n: int):
        """The keys of a step that are its n-th block's."""
        return slice(n * self.rows, (n + 1) * self.rows)


def beside_each_other(blocks_ref):
    """What `ListedBlocks` fetches from [NB, 2, c, H] in HBM: one copy for keys and values. Its rows, count, fetch."""
    return blocks_ref.shape[2], blocks_ref.shape[0], lambda block, room: [(blocks_ref.at[block], room)]
