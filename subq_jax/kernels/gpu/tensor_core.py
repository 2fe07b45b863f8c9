"""Products on Hopper's tensor cores, by one warpgroup, and a warp's maximum: what no interpreter simulates.

The kernels of this folder call nothing else for them, so that tests replace these functions by plain ones and run all
the rest (copies, barriers, loops, who waits for whom) under Pallas' simulator of a GPU.

Left operands of a product have 64 rows. References point into shared memory, swizzled; arrays are in registers.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, vector

ACC = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)  # one number for each row of a product
COLUMNS = plgpu.Layout.WGMMA.reduce(0)


def largest_of_warp(numbers):
    """The largest of the 16 numbers, int32 [64] in `ROWS`, that a warp holds: a scalar that differs between warps.

    What follows from it must not make a warp wait for another. A maximum over the whole array would pass through shared
    memory, at a place that both computing warpgroups take for their own (jax 0.11.2).
    """
    @plgpu.inline_mgpu(
        arg_types=(ROWS,), return_type=plgpu.ShapeDtypeStruct((), jnp.int32, layout=plgpu.Layout.WG_SPLAT))
    def largest(_, numbers):
        i32 = ir.IntegerType.get_signless(32)
        first, *others = [vector.extract(x, [], [0]) for x in numbers.registers.flat]
        for other in others:
            first = arith.maxsi(first, other)
        every_lane = arith.constant(i32, -1)
        return mgpu.FragmentedArray.splat(
            utils.redux(first, every_lane, utils.ReductionKind.MAX), (), is_signed=True)

    return largest(numbers)


def _accumulator(rows: int, columns: int):
    return plgpu.ACC((rows, columns), jnp.float32)


def scores(left, right):
    """left right^T, float32 [64, n], of a reference or an array [64, d] and a reference [n, d]."""
    def product(out):
        plgpu.wgmma(out, left, right.transpose((1, 0)))
        return out[...]

    return pl.run_scoped(product, _accumulator(left.shape[0], right.shape[0]))


def two_scores(left, right, other_left, other_right):
    """`scores` of both pairs, the second product in flight while the first is waited for."""
    def products(out, other):
        plgpu.wgmma(out, left, right.transpose((1, 0)))
        plgpu.wgmma(other, other_left, other_right.transpose((1, 0)))
        first = plgpu.wgmma_accumulator_load(out, wait_n=1)
        return first, plgpu.wgmma_accumulator_load(other, wait_n=0)

    shapes = [(a.shape[0], b.shape[0]) for a, b in ((left, right), (other_left, other_right))]
    return pl.run_scoped(products, *(_accumulator(*shape) for shape in shapes))


def add_product(total, weights, values):
    """total + weights values, of arrays [64, d] and [64, n] and a reference [n, d]."""
    def product(out):
        out[...] = total
        plgpu.wgmma(out, weights, values)
        return out[...]

    return pl.run_scoped(product, _accumulator(*total.shape))


def add_two_products(total, weights, values, other_total, other_weights, other_values):
    """`add_product` twice, both in flight together."""
    def products(out, other):
        out[...] = total
        other[...] = other_total
        plgpu.wgmma(out, weights, values)
        plgpu.wgmma(other, other_weights, other_values)
        first = plgpu.wgmma_accumulator_load(out, wait_n=1)
        return first, plgpu.wgmma_accumulator_load(other, wait_n=0)

    return pl.run_scoped(products, _accumulator(*total.shape), _accumulator(*other_total.shape))


def scores_beside_product(left, right, meanwhile, total, weights, values):
    """`scores(left, right)` handed to `meanwhile`, which runs while total + weights values is still being computed.

    Returns:
      the second product, and what `meanwhile` returned.
    """
    def products(out, sums):
        sums[...] = total
        plgpu.wgmma(out, left, right.transpose((1, 0)))
        plgpu.wgmma(sums, weights, values)
        result = meanwhile(plgpu.wgmma_accumulator_load(out, wait_n=1))
        return plgpu.wgmma_accumulator_load(sums, wait_n=0), result

    shapes = (left.shape[0], right.shape[0]), total.shape
    return pl.run_scoped(products, *(_accumulator(*shape) for shape in shapes))
