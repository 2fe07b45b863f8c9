"""What the kernels share: blocks of threads that stay on a multiprocessor and walk over their share of the work.

In each, warpgroups that compute wait for what one more copies into rings in shared memory, and free a slot when they
have read it.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.tensor_core import ACC

HALF, WORKERS = 64, 2  # rows of a warpgroup's product; warpgroups that compute, unless a kernel says otherwise
PRODUCER = WORKERS  # the warpgroup that copies
UNSEEN, FLOOR = -1e30, -1e29  # the gate of a block that is not seen, and the running maximum before the first that is
WARPS = 4  # of a warpgroup
REGISTERS = 240, 24  # of a thread that computes, of one that copies
LOG2E = math.log2(math.e)


def matrix(*shape: int, dtype):
    """Shared memory [..., rows, columns] as tensor cores read it."""
    columns = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128)))


def launch(kernel, results, scratch: dict, ctas: int, arguments, *, workers: int = WORKERS):
    """Runs `kernel(*arguments, *results, **scratch)`: warpgroups that compute and one that copies, in `ctas` blocks.

    Args:
      kernel: takes references.
      results: shapes and dtypes.
      scratch: shared memory and barriers by name.
      ctas: blocks of threads.
      arguments: arrays.
      workers: warpgroups that compute.
    """
    def scoped(*refs):
        pl.run_scoped(functools.partial(kernel, *refs), collective_axes="warpgroup", **scratch)

    return plgpu.kernel(
        scoped, out_type=results, grid=(ctas,), grid_names=("cta",), num_threads=workers + 1, thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            unsafe_no_auto_barriers=True,  # one at every use of shared memory would end the overlap
            reduction_scratch_bytes=0),  # where warps would meet to reduce, all computing warpgroups would at once
    )(*arguments)


def for_each_item(rows: int, columns: int, ctas: int, body, carry, warp=None):
    """`carry = body(row, column, number, carry)` over this block of threads' share of a table of items.

    A row is walked from its end: late queries, which see the most, come first, and what is left for the last round,
    when not all blocks of threads have an item, is short.

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
        return body(lax.div(item, jnp.int32(columns)), columns - 1 - lax.rem(item, jnp.int32(columns)), number, carry)

    return count, lax.fori_loop(jnp.int32(0), count, visit, carry)


def hide_later(logits, positions, first):
    """-inf where a key, the first at position `first`, comes after its row's position."""
    key = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=ACC) + first
    return jnp.where(key <= by_row(positions, logits), logits, -jnp.inf)


def softmax_step(logits, scale: float, gate, top, norm):
    """A step of the running softmax.

    Args:
      logits: float32 [rows, keys]; times `scale` they are powers of 2, as are the following.
      gate: float32 [rows], or one for all.
      top, norm: float32 [rows], the largest logit so far and the sum of weights relative to it.

    Returns:
      the step's weights [rows, keys], what earlier sums shrink by, and the new `top` and `norm`.
    """
    new = jnp.maximum(top, logits.max(axis=1) * scale + gate)
    shrink = jnp.exp2(top - new)
    weights = jnp.exp2(logits * scale - by_row(new - gate, logits))
    return weights, shrink, new, norm * shrink + weights.sum(axis=1)


def by_row(x, like):
    """[rows] -> [rows, n]; a number stays one."""
    return lax.broadcast_in_dim(x, like.shape, [0]) if x.ndim else x


def constant(value, shape, layout):
    """An array in registers."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def drain(stages: int, steps, *barriers):
    """Waits until the last use of every slot of a ring is over, so that no barrier is left with news unread."""
    for slot in range(stages):
        @pl.when(steps > slot)
        def _(slot=slot):
            for barrier in barriers:
                plgpu.barrier_wait(barrier.at[slot])
