"""What the kernels of attention share: a tile's rows, the blocks it lists, and the persistent loop over tiles.

A tile is 128 rows: all query heads of 128 / G neighbouring tokens and one KV head, token by token. Two warpgroups own
64 rows each and share the blocks that a third fetches:

    worker 0   rows  0 .. 63    token 0, heads 0 .. G-1
                                token 1, ...                 producer: for every entry of the tile's list
    worker 1   rows 64 .. 127   ...                                    gates, keys and values -> ring in shared memory

The list of a tile is the union of its tokens' blocks, descending, so that blocks in which some row's own position lies
come first. Beside each block stand the tile's gates for it, `UNSEEN` for tokens that do not list it: added to the
logits, they make those weights exact zeros, whatever else the row has seen. A worker passes over steps that none of its
own tokens lists: it only says that their slots are free.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.tensor_core import ACC, ROWS

TILE, HALF, WORKERS = 128, 64, 2  # rows of a tile and of a warpgroup, warpgroups that compute
PRODUCER = WORKERS  # the warpgroup that copies
STEP_KEYS = 64  # positions of a step of a tile's list, or of one block where that has more
RING_KEYS = 4 * STEP_KEYS  # positions in shared memory, in the forward pass
UNSEEN, FLOOR = -1e30, -1e29  # the gate of a block that is not seen, and the running maximum before the first that is
WARPS = 4  # of a warpgroup
REGISTERS = 240, 24  # of a thread that computes, of one that copies
LOG2E = math.log2(math.e)


def stages_of(block: int) -> int:
    """Steps of the forward pass in shared memory, a power of 2; whole blocks where these are larger than a step.

    A worker holds one of them while it waits for its next, which must not be further away than the others reach.
    """
    return RING_KEYS // max(STEP_KEYS, block)


class TileShape(NamedTuple):
    """Static sizes of a kernel over tiles."""

    tokens: int  # of a tile
    block: int  # positions
    keys: int  # positions of a step

    @property
    def group(self) -> int:
        """Rows of a token."""
        return TILE // self.tokens

    @property
    def together(self) -> int:
        """Blocks of a step."""
        return max(1, self.keys // self.block)

    @property
    def parts(self) -> int:
        """Parts in which a step of a list is taken, where a block has more positions than that."""
        return max(1, self.block // self.keys)

    @property
    def edge_blocks(self) -> int:
        """Blocks that consecutive tokens of a tile can stand in."""
        return -(-(self.tokens + self.block - 1) // self.block)

    @property
    def edge_steps(self) -> int:
        """Steps of a list in which a row may see part of a block."""
        return -(-self.edge_blocks // self.together)


def tokens_of_tile(group: int) -> int:
    """Tokens whose heads fill a tile; a group is filled up to a power of 2, and to the 8 rows that a copy can place."""
    return TILE // max(8, 1 << (group - 1).bit_length())


def matrix(*shape: int, dtype):
    """Shared memory [..., rows, columns] as tensor cores read it."""
    columns = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128)))


def launch(kernel, results, scratch: dict, ctas: int, arguments, *, automatic_barriers: bool = True):
    """Runs `kernel(*arguments, *results, **scratch)`: warpgroups that compute and one that copies, in `ctas` blocks.

    Args:
      kernel: takes references.
      results: shapes and dtypes.
      scratch: shared memory and barriers by name.
      ctas: blocks of threads.
      arguments: arrays.
      automatic_barriers: whether the compiler puts a barrier at every use of shared memory, which would end the overlap
        of a kernel that holds those it needs.
    """
    def scoped(*refs):
        pl.run_scoped(functools.partial(kernel, *refs), collective_axes="warpgroup", **scratch)

    return plgpu.kernel(
        scoped, out_type=results, grid=(ctas,), grid_names=("cta",), num_threads=WORKERS + 1, thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, unsafe_no_auto_barriers=not automatic_barriers,
            reduction_scratch_bytes=0),  # where warps would meet to reduce, both computing warpgroups would at once
    )(*arguments)


def for_each_item(rows: int, columns: int, ctas: int, body, carry, warp=None):
    """`carry = body(row, column, number, carry)` over this block of threads' share of a table of items.

    Args:
      warp: of the block of threads, where warps walk apart from each other.

    Returns:
      how many they are, which `number` counts, and the last carry.
    """
    mine, sharers = lax.axis_index("cta"), ctas
    if warp is not None:
        mine, sharers = mine * WARPS + warp, ctas * WARPS
    count = lax.div(jnp.int32(rows * columns) - mine + (sharers - 1), jnp.int32(sharers))

    def visit(number, carry):
        item = mine + number * sharers
        return body(lax.div(item, jnp.int32(columns)), lax.rem(item, jnp.int32(columns)), number, carry)

    return count, lax.fori_loop(jnp.int32(0), count, visit, carry)


def token_masks(shape: TileShape, iota):
    """1.0 where a row (or column) belongs to the j-th token of a warpgroup's 64 rows, for every j."""
    owns = lambda j: (iota >= j * shape.group) & (iota < (j + 1) * shape.group)
    return [jnp.where(owns(j), jnp.float32(1), jnp.float32(0)) for j in range(HALF // shape.group)]


def spread(masks, numbers):
    """One number for each token -> one for each of the rows that `masks` belong to."""
    total = masks[0] * numbers[0]
    for mask, number in zip(masks[1:], numbers[1:], strict=True):
        total = total + mask * number
    return total


def row_positions(shape: TileShape, first):
    """Positions int32 [64] of a warpgroup's rows, the first at `first`."""
    row = plgpu.broadcasted_iota(jnp.int32, (HALF,), 0, layout=ROWS)
    token = jnp.zeros_like(row)
    for j in range(1, HALF // shape.group):
        token = token + (row >= j * shape.group).astype(jnp.int32)
    return token + first


def hide_later(logits, positions, first):
    """-inf where a key, the first at position `first`, comes after its row's position."""
    key = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=ACC) + first
    return jnp.where(key <= by_row(positions, logits), logits, -jnp.inf)


def by_row(x, like):
    """[64] -> [64, n]."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def constant(value, shape, layout):
    """An array in registers."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def fetch_tile(shape: TileShape, steps, ring, stages: int, x, tile, lists, copies):
    """The producer's part of a tile: for every step waits for room and copies what `copies` ask.

    Ids are read from memory a step ahead of their use, so that no step waits for them.

    Args:
      steps: of the tile, counted in parts.
      ring: steps of this block of threads before.
      copies: (source, target, full, free, what) with `what` being "gates" or "blocks"; barriers count one arrival for
        each copy, and `free` is None where another copy has waited for it.
    """
    size, together = min(shape.keys, shape.block), shape.together
    step_of = lambda s: lax.div(s, jnp.int32(shape.parts))
    ids_of = lambda s: tuple(lists[x, tile, step_of(s) * together + j] for j in range(together))

    def fetch(s, ids):
        following, slot = ids_of(jnp.minimum(s + 1, steps - 1)), (ring + s) & (stages - 1)
        part = lax.rem(s, jnp.int32(shape.parts)) * shape.keys
        for source, target, full, free, what in copies:
            if free is not None:
                @pl.when(ring + s >= stages)
                def _(free=free):
                    plgpu.barrier_wait(free.at[slot])
            if what == "gates":
                count = together * shape.tokens
                plgpu.copy_gmem_to_smem(source.at[x, tile, pl.ds(step_of(s) * count, count)],
                                        target.at[slot, pl.ds(0, count)], full.at[slot])
                continue
            for j, block in enumerate(ids):
                plgpu.copy_gmem_to_smem(source.at[x, pl.ds(block * shape.block + part, size)],
                                        target.at[slot, pl.ds(j * size, size)], full.at[slot])
        return following

    lax.fori_loop(jnp.int32(0), steps, fetch, ids_of(jnp.int32(0)))


def pass_over(first, last, slot_of, full, free):
    """Steps `first` to `last`, the last not included, are filled and freed without a look."""
    def step(s, carry):
        slot = slot_of(s)
        plgpu.barrier_wait(full.at[slot])
        plgpu.barrier_arrive(free.at[slot])
        return carry

    lax.fori_loop(first, last, step, None)


def drain(stages: int, steps, *barriers):
    """Waits until the last use of every slot of a ring is over, so that no barrier is left with news unread."""
    for slot in range(stages):
        @pl.when(steps > slot)
        def _(slot=slot):
            for barrier in barriers:
                plgpu.barrier_wait(barrier.at[slot])
