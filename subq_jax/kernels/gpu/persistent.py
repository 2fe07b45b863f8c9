"""What the kernels share: blocks of threads that stay on a multiprocessor and walk over their share of the work.

In each, warpgroups that compute wait for what one more copies into rings in shared memory, and free a slot when they
have read it.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

PRODUCT_ROWS, WORKERS = 64, 2  # rows of a warpgroup's product; warpgroups that compute, unless a kernel says otherwise
PRODUCER = WORKERS  # the warpgroup that copies
WARPS = 4  # of a warpgroup
REGISTERS = 240, 24  # of a thread that computes, of one that copies


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


def drain(stages: int, steps, *barriers):
    """Waits until the last use of every slot of a ring is over, so that no barrier is left with news unread."""
    for slot in range(stages):
        @pl.when(steps > slot)
        def _(slot=slot):
            for barrier in barriers:
                plgpu.barrier_wait(barrier.at[slot])
