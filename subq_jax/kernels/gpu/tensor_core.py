"""Products on Hopper's tensor cores, and what a warp does by itself: what no interpreter simulates.

The kernels of this folder call only this, `lanes.py` and `append.py` for them, so that tests replace these functions by
plain ones and run all the rest (copies, barriers, loops, who waits for whom) under Pallas' simulator of a GPU.

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
LOADED_TILES = 4  # of 8 rows of a right operand, whose fragments a thread holds at a time


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


def fmax(numbers, others):
    """The larger of every two, float32 in `ACC`; the other one where one is no number.

    One instruction, where `jnp.maximum` keeps what is no number, and `jnp.where(x > y, x, y)` takes two.
    """
    of_same_kind = plgpu.ShapeDtypeStruct(numbers.shape, numbers.dtype, layout=ACC)

    @plgpu.inline_mgpu(arg_types=(ACC, ACC), return_type=of_same_kind)
    def maxima(_, numbers, others):
        registers = numbers.registers.copy()
        for i, other in enumerate(others.registers.flat):
            registers.flat[i] = arith.maxnumf(registers.flat[i], other)
        return mgpu.FragmentedArray(_registers=registers, _layout=numbers.layout, _is_signed=None)

    return maxima(numbers, others)


def _accumulator(rows: int, columns: int):
    return plgpu.ACC((rows, columns), jnp.float32)


def scores(left, right):
    """left right^T, float32 [64, n], of a reference or an array [64, d] and a reference [n, d]."""
    def product(out):
        plgpu.wgmma(out, left, right.transpose((1, 0)))
        return out[...]

    return pl.run_scoped(product, _accumulator(left.shape[0], right.shape[0]))


def add_product(total, weights, values):
    """total + weights values, of arrays [64, d] and [64, n] and a reference [n, d]."""
    def product(out):
        out[...] = total
        plgpu.wgmma(out, weights, values)
        return out[...]

    return pl.run_scoped(product, _accumulator(*total.shape))


def two_scores(left, right, other_left, other_right):
    """`scores` of both pairs, the second product in flight while the first is waited for."""
    def products(out, other):
        plgpu.wgmma(out, left, right.transpose((1, 0)))
        plgpu.wgmma(other, other_left, other_right.transpose((1, 0)))
        first = plgpu.wgmma_accumulator_load(out, wait_n=1)
        return first, plgpu.wgmma_accumulator_load(other, wait_n=0)

    shapes = [(a.shape[0], b.shape[0]) for a, b in ((left, right), (other_left, other_right))]
    return pl.run_scoped(products, *(_accumulator(*shape) for shape in shapes))


def add_two_products(total, weights, values, other_total, other_weights, other_values):
    """total + weights values, of arrays [64, d] and [64, n] and a reference [n, d], twice, both in flight together."""
    def products(out, other):
        out[...] = total
        other[...] = other_total
        plgpu.wgmma(out, weights, values)
        plgpu.wgmma(other, other_weights, other_values)
        first = plgpu.wgmma_accumulator_load(out, wait_n=1)
        return first, plgpu.wgmma_accumulator_load(other, wait_n=0)

    return pl.run_scoped(products, _accumulator(*total.shape), _accumulator(*other_total.shape))


def warp_of_thread():
    """Which of its warpgroup's warps runs this: a scalar that differs between them."""
    @plgpu.inline_mgpu(return_type=plgpu.ShapeDtypeStruct((), jnp.int32, layout=plgpu.Layout.WG_SPLAT))
    def warp(_):
        i32 = ir.IntegerType.get_signless(32)
        number = arith.remui(utils.warp_idx(sync=True), arith.constant(i32, 4))
        return mgpu.FragmentedArray.splat(number, (), is_signed=True)

    return warp()


def sums_of_warp(numbers, count: int):
    """Sums of the 16 numbers, float32 [64] in `ROWS`, that a warp holds: `count` scalars, for the halves if it is 2."""
    scalar = plgpu.ShapeDtypeStruct((), jnp.float32, layout=plgpu.Layout.WG_SPLAT)

    @plgpu.inline_mgpu(arg_types=(ROWS,), return_type=(scalar,) * count)
    def sums(_, numbers):
        first, second = [vector.extract(x, [], [0]) for x in numbers.registers.flat]
        totals = [arith.addf(first, second)] if count == 1 else [first, second]
        for distance in (4, 8, 16):  # lanes that hold other rows
            totals = [arith.addf(x, utils.shfl_bfly(x, distance)) for x in totals]
        return tuple(mgpu.FragmentedArray.splat(x, ()) for x in totals)

    return sums(numbers)


def warp_scores(left, right):
    """left right^T, float32 [64, n], of references [64, d] and [n, d]; every warp multiplies its own 16 rows.

    Unlike `scores`, warps need not come here together, nor all of them.
    """
    @plgpu.inline_mgpu(arg_types=(_matrix_type(left), _matrix_type(right)),
                       return_type=plgpu.ShapeDtypeStruct((left.shape[0], right.shape[0]), jnp.float32, layout=ACC))
    def product(_, left, right):
        layouts = mgpu.MMALayouts(ir.MemRefType(left.type).element_type)
        row_tiles, column_tiles, *_ = ir.MemRefType(right.type).shape
        many = min(LOADED_TILES, row_tiles)
        sums = [_zeros(64, 8 * many) for _ in range(row_tiles // many)]
        for column in range(column_tiles):
            a = _load(utils.memref_slice(left, (slice(None), slice(column, column + 1))), layouts.lhs)
            for i in range(len(sums)):
                cut = utils.memref_slice(right, (slice(i * many, (i + 1) * many), slice(column, column + 1)))
                sums[i] = mgpu.mma(sums[i], a, _load(utils.memref_transpose(cut, (1, 0, 3, 2)), layouts.rhs))
        return _join(sums)

    return product(left, right)


def add_warp_product(total, weights, values, present=None):
    """total + weights values, of arrays [64, d] and [64, n] and a reference [n, d], warp by warp as `warp_scores`.

    `present`, an int32, is how many of the first values count; behind them may stand anything.
    """
    given = () if present is None else (present,)

    @plgpu.inline_mgpu(arg_types=(ACC, ACC, _matrix_type(values)) + (plgpu.Layout.WG_SPLAT,) * len(given),
                       return_type=plgpu.ShapeDtypeStruct(total.shape, jnp.float32, layout=ACC))
    def product(_, total, weights, values, *present):
        layouts = mgpu.MMALayouts(weights.mlir_dtype)
        column_tiles, width = ir.MemRefType(values.type).shape[1], ir.MemRefType(values.type).shape[3]
        sums = [total[:, j * width : (j + 1) * width] for j in range(column_tiles)]
        for k in range(0, weights.shape[1], 16):  # what a warp holds of a product is what it needs of a left operand
            part = weights[:, k : k + 16]
            a = mgpu.FragmentedArray(_registers=part.registers.reshape(layouts.lhs.registers_shape(part.shape)),
                                     _layout=layouts.lhs, _is_signed=None)
            for j in range(column_tiles):
                cut = utils.memref_slice(values, (slice(k // 8, k // 8 + 2), slice(j, j + 1)))
                b = _load(cut, layouts.rhs)
                sums[j] = mgpu.mma(sums[j], a, _first_rows(b, k, *present) if present else b)
        return _join(sums)

    return product(total, weights, values, *given)


def _first_rows(part, first: int, present):
    """A part of a matrix, from its row `first` on, with zeros behind the first `present` rows of the whole.

    A register of a right operand holds numbers of rows that follow each other. `broadcasted_iota` would call them all
    by the first one's number (jax 0.11.2).
    """
    i32, registers = ir.IntegerType.get_signless(32), part.registers.copy()
    zero = arith.constant(part.mlir_dtype, 0.0)
    below = arith.subi(present.registers.flat[0], arith.constant(i32, first))
    for i, (row, _) in enumerate(part.layout.thread_idxs(part.shape)):
        left = arith.subi(below, arith.index_cast(i32, row))
        for j in range(*ir.VectorType(registers.flat[i].type).shape):
            keep = arith.cmpi(arith.CmpIPredicate.sgt, left, arith.constant(i32, j))
            number = arith.select(keep, vector.extract(registers.flat[i], [], [j]), zero)
            registers.flat[i] = vector.insert(number, registers.flat[i], dynamic_position=[], static_position=[j])
    return mgpu.FragmentedArray(_registers=registers, _layout=part.layout, _is_signed=None)


def _matrix_type(ref):
    columns = 128 // jnp.dtype(ref.dtype).itemsize
    return plgpu.RefType((plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128)))


def _load(ref, layout):
    return mgpu.FragmentedArray.load_tiled(ref, 128, layout=layout)


def _zeros(rows: int, columns: int):
    zero = arith.constant(ir.F32Type.get(), 0.0)
    return mgpu.FragmentedArray.splat(zero, (rows, columns), layout=mgpu.WGMMA_LAYOUT)


def _join(parts):
    """Arrays side by side."""
    out = _zeros(parts[0].shape[0], sum(x.shape[1] for x in parts))
    at = 0
    for part in parts:
        out[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return out
