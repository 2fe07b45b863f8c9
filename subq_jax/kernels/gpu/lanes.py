"""The order of a row's columns in the lanes of a warp: what no interpreter simulates, as in `tensor_core.py`.

A row of 8 columns of `ACC` lies in four lanes, two columns in each. For lists to stay in order without a vote for every
column, a row's order here is that of its lanes: of n columns the first lane has the n / 4 that come first, and so on.

    columns as they stand      0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
    their lanes                0  0  1  1  2  2  3  3  0  0  1  1  2  2  3  3
    their places in the order  0  1  4  5  8  9 12 13  2  3  6  7 10 11 14 15

Whoever makes a product's right operand puts its rows there (`in_lanes`); what is loaded from a list is loaded that way.
"""

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from subq_jax.kernels.gpu.tensor_core import ACC

LANES = 4  # that share a row


def in_lanes(rows, tile: int):
    """Rows [..., n, R], n a multiple of `tile`, reordered in every tile, so that a lane has columns that follow."""
    tiles = rows.reshape(*rows.shape[:-2], -1, LANES, tile // (2 * LANES), 2, rows.shape[-1])
    return tiles.swapaxes(-4, -3).reshape(rows.shape)


def place_in_order(columns, number: int):
    """Where in a row's order those of `number` columns stand, int32."""
    return ((columns >> 1) & (LANES - 1)) * (number // LANES) + (columns >> 3) * 2 + (columns & 1)


def load_in_lanes(table, first, number: int):
    """[64, number] in `ACC`, columns in the order of lanes, of a reference [64, C] into global memory.

    Args:
      table: of float32 or int32.
      first: the first column, even.
      number: of columns.
    """
    dtype = table.dtype

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT),
                       return_type=plgpu.ShapeDtypeStruct((64, number), dtype, layout=ACC))
    def load(_, table, first):
        index, lane = ir.IndexType.get(), Lane()
        element = ir.MemRefType(table.type).element_type
        start = arith.addi(first.registers.flat[0], arith.muli(lane.quad, i32(number // LANES)))
        registers = np.empty(mgpu.WGMMA_LAYOUT.registers_shape((64, number)), object)
        for i in range(registers.size):
            j, half = divmod(i, 2)
            column = arith.index_cast(index, arith.addi(start, i32(2 * j)))
            registers.flat[i] = vector.load(ir.VectorType.get((2,), element), table, [lane.rows[half], column])
        signed = True if jnp.issubdtype(dtype, jnp.integer) else None
        return mgpu.FragmentedArray(_registers=registers, _layout=mgpu.WGMMA_LAYOUT, _is_signed=signed)

    return load(table, first)


class Lane:
    """Where in its warpgroup a thread stands: which of four lanes of its rows, and the rows."""

    def __init__(self):
        index = ir.IndexType.get()
        thread = arith.remui(utils.thread_idx(), i32(128))
        lane = arith.remui(thread, i32(32))
        self.quad = arith.andi(lane, i32(LANES - 1))
        row = arith.addi(arith.muli(arith.divui(thread, i32(32)), i32(16)), arith.divui(lane, i32(LANES)))
        self.rows = [arith.index_cast(index, arith.addi(row, i32(8 * half))) for half in range(2)]

    def counts_before(self, marks):
        """How many marks of both rows the lanes before this one have, and how many all four have."""
        first, second = map(llvm.intr_ctpop, marks)
        mine = arith.ori(first, arith.shli(second, i32(16)))  # up to 128 each
        beside = utils.shfl_bfly(mine, 1)
        pair = arith.addi(mine, beside)
        across = utils.shfl_bfly(pair, 2)
        zero = i32(0)
        if_odd, if_later = (is_set(arith.andi(self.quad, i32(x))) for x in (1, 2))
        before = arith.addi(arith.select(if_odd, beside, zero), arith.select(if_later, across, zero))
        apart = lambda x: [arith.andi(x, i32(0xFFFF)), arith.shrui(x, i32(16))]
        return apart(before), apart(arith.addi(pair, across))


def is_set(bits):
    """Whether any of an int32's bits is set."""
    return arith.cmpi(arith.CmpIPredicate.ne, bits, i32(0))


def i32(x: int):
    """A constant of 32 bits."""
    return arith.constant(ir.IntegerType.get_signless(32), x - (1 << 32) if x >= 1 << 31 else x)
