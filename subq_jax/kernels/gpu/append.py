"""Appending to lists in global memory what is better than a bound: what a warp does by itself, as `tensor_core`.

A row of 8 columns of `ACC` lies in four lanes, two columns in each. For lists to stay in order without a vote for every
column, a row's order here is that of its lanes: of n columns the first lane has the n / 4 that come first, and so on.

    columns as they stand      0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
    their lanes                0  0  1  1  2  2  3  3  0  0  1  1  2  2  3  3
    their places in the order  0  1  4  5  8  9 12 13  2  3  6  7 10 11 14 15

Whoever makes a product's right operand puts its rows there (`in_lanes`); what is loaded from a list is loaded that way.
"""

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, math, memref, nvvm, scf, vector

from subq_jax.kernels.gpu.tensor_core import ACC, ROWS

LANES = 4  # that share a row
BRANCH = 4  # registers of each row half that a branch passes over, and again within it


def in_lanes(rows, tile: int):
    """Puts the rows [..., n, R] of every `tile` where their lanes have them in order."""
    tiles = rows.reshape(*rows.shape[:-2], -1, LANES, tile // (2 * LANES), 2, rows.shape[-1])
    return tiles.swapaxes(-4, -3).reshape(rows.shape)


def place_in_order(columns, number: int):
    """Where in a row's order those of `number` columns stand, int32."""
    return ((columns >> 1) & (LANES - 1)) * (number // LANES) + (columns >> 3) * 2 + (columns & 1)


def load_in_lanes(table, first, number: int):
    """[64, number] in `ACC`, columns in the order of lanes, of a reference [64, C] into global memory, from `first`."""
    dtype = table.dtype

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.Layout.WG_SPLAT),
                       return_type=plgpu.ShapeDtypeStruct((64, number), dtype, layout=ACC))
    def load(_, table, first):
        index, lane = ir.IndexType.get(), _Lane()
        element = ir.MemRefType(table.type).element_type
        start = arith.addi(first.registers.flat[0], arith.muli(lane.quad, _number(number // LANES)))
        signed = True if jnp.issubdtype(dtype, jnp.integer) else None
        zero = arith.constant(element, 0 if signed else 0.0)
        out = mgpu.FragmentedArray.splat(zero, (64, number), layout=mgpu.WGMMA_LAYOUT, is_signed=signed)
        registers = out.registers.copy()
        for i in range(registers.size):
            j, half = divmod(i, 2)
            column = arith.index_cast(index, arith.addi(start, _number(2 * j)))
            registers.flat[i] = vector.load(ir.VectorType.get((2,), element), table, [lane.rows[half], column])
        return mgpu.FragmentedArray(_registers=registers, _layout=out.layout, _is_signed=signed)

    return load(table, first)


def append_better(scores, scale: float, ids, bounds, places, kept_scores, kept_ids, *, equals=None,
                  backward: bool = False):
    """Every row's scaled numbers above its bound go into its row of two tables, in order.

    A lane marks its own columns, 2 n / 4 bits; marks are counted, counts exchanged between the lanes of a row, and
    each lane puts down its own from then on. A warp passes over what none of its lanes has anything of.

    Warps need not come here together. What one of them has written all its lanes can read afterwards. `scores` and
    `ids` may have been loaded from the tables themselves, if none moves to a later column.

    Args:
      scores: float32 [64, n] in `ACC`, in the order of lanes, n up to 128.
      scale: what they are multiplied with.
      ids: the first one's number, which others follow, or every entry's, int32 [64, n] as `scores`.
      bounds: float32 [64] in `ROWS`.
      places: int32 [64] in `ROWS`, where a row's first goes; there must be room for all.
      kept_scores, kept_ids: references [64, C] into global memory.
      equals: int32 [64] in `ROWS`, how many that equal the bound go along, the first of each row; None for none.
      backward: the next goes before the last instead of behind it.

    Returns:
      int32 [64], where the next would go.
    """
    of_ids = ACC if ids.ndim else plgpu.Layout.WG_SPLAT
    further = () if equals is None else (equals,)
    share = scores.shape[1] // LANES

    @plgpu.inline_mgpu(arg_types=(ACC, of_ids, ROWS, ROWS, plgpu.RefType(), plgpu.RefType(), *(ROWS for _ in further)),
                       return_type=plgpu.ShapeDtypeStruct(places.shape, jnp.int32, layout=ROWS))
    def append(_, scores, ids, bounds, places, kept_scores, kept_ids, *further):
        i32, index, lane = ir.IntegerType.get_signless(32), ir.IndexType.get(), _Lane()
        of_rows = lambda x: [vector.extract(register, [], [0]) for register in x.registers.flat]
        one_by_one = lambda x, half: [vector.extract(register, [], [k])
                                      for register in x.registers.flat[half::2] for k in range(2)]
        bounds, ends, *left = map(of_rows, (bounds, places, *further))
        values = [one_by_one(scores, half) for half in range(2)]
        factor = arith.constant(ir.F32Type.get(), scale)
        marks = [_marks_of_better(x, scale, bound) for x, bound in zip(values, bounds, strict=True)]
        if further:
            equal = [_marks([arith.cmpf(arith.CmpFPredicate.OEQ, y, bound) for y in x])
                     for x, bound in zip(values, bounds, strict=True)]
            before, _ = lane.counts_before(equal)
            equal = [_first_marks(x, arith.subi(most, earlier), share)
                     for x, most, earlier in zip(equal, left[0], before, strict=True)]
            marks = [arith.ori(*x) for x in zip(marks, equal, strict=True)]

        either = arith.ori(*marks)
        some = nvvm.vote_sync(_number(-1), _is_set(either), "any", results=[ir.IntegerType.get_signless(1)])
        outer = scf.IfOp(some, [i32, i32], has_else=True)
        with ir.InsertionPoint(outer.then_block):
            utils.warp_barrier()  # what was loaded from the tables is loaded before another lane overwrites it
            of_warp = utils.redux(either, _number(-1), utils.ReductionKind.OR)
            before, totals = lane.counts_before(marks)
            forward = arith.subi if backward else arith.addi
            slots = [forward(*x) for x in zip(ends, before, strict=True)]

            def put_down(i, slots):
                slots = list(slots)
                for half in range(2):
                    mine = _is_set(arith.andi(marks[half], _number(1 << i)))
                    if of_ids is ACC:
                        name = vector.extract(ids.registers.flat[i - i % 2 + half], [], [i % 2])
                    else:
                        first = arith.addi(ids.registers.flat[0], arith.muli(lane.quad, _number(share)))
                        name = arith.addi(first, _number(i))
                    with utils.when(mine):
                        at = [lane.rows[half], arith.index_cast(index, slots[half])]
                        memref.store(arith.mulf(values[half][i], factor), kept_scores, at)
                        memref.store(name, kept_ids, at)
                    slots[half] = forward(slots[half], arith.extui(i32, mine))
                return slots

            def visit(bits, slots, size):  # branches of `BRANCH` times as many columns around those of two
                for part in (bits[i : i + size] for i in range(0, len(bits), size)):
                    here = _is_set(arith.andi(of_warp, _number(sum(1 << i for i in part))))
                    branch = scf.IfOp(here, [i32, i32], has_else=True)
                    with ir.InsertionPoint(branch.then_block):
                        inner = slots
                        if size > 2:
                            inner = visit(part, inner, size // BRANCH)
                        else:
                            for i in part:
                                inner = put_down(i, inner)
                        scf.yield_(inner)
                    with ir.InsertionPoint(branch.else_block):
                        scf.yield_(slots)
                    slots = list(branch.results)
                return slots

            visit(range(share), slots, 2 * BRANCH)
            utils.warp_barrier()
            scf.yield_([forward(*x) for x in zip(ends, totals, strict=True)])
        with ir.InsertionPoint(outer.else_block):
            scf.yield_(ends)
        registers = places.registers.copy()
        for i, end in enumerate(outer.results):
            registers.flat[i] = vector.broadcast(registers.flat[i].type, end)
        return mgpu.FragmentedArray(_registers=registers, _layout=places.layout, _is_signed=True)

    return append(scores, ids, bounds, places, kept_scores, kept_ids, *further)


class _Lane:
    """Where in its warpgroup a thread stands: which of four lanes of its rows, and the rows."""

    def __init__(self):
        index = ir.IndexType.get()
        thread = arith.remui(utils.thread_idx(), _number(128))
        lane = arith.remui(thread, _number(32))
        self.quad = arith.andi(lane, _number(LANES - 1))
        row = arith.addi(arith.muli(arith.divui(thread, _number(32)), _number(16)), arith.divui(lane, _number(LANES)))
        self.rows = [arith.index_cast(index, arith.addi(row, _number(8 * half))) for half in range(2)]

    def counts_before(self, marks):
        """How many marks of both rows the lanes before this one have, and how many all four have."""
        first, second = map(llvm.intr_ctpop, marks)
        mine = arith.ori(first, arith.shli(second, _number(16)))  # up to 128 each
        beside = utils.shfl_bfly(mine, 1)
        pair = arith.addi(mine, beside)
        across = utils.shfl_bfly(pair, 2)
        zero = _number(0)
        if_odd, if_later = (_is_set(arith.andi(self.quad, _number(x))) for x in (1, 2))
        before = arith.addi(arith.select(if_odd, beside, zero), arith.select(if_later, across, zero))
        apart = lambda x: [arith.andi(x, _number(0xFFFF)), arith.shrui(x, _number(16))]
        return apart(before), apart(arith.addi(pair, across))


def _marks_of_better(values, scale: float, bound):
    """A bit for each of up to 32 numbers that `scale` times it is above the bound; none for what is no number.

    The sign of the difference, which is rounded once: where it is 0 the scaled number, rounded, is not above the bound,
    and one that equals the bound may be marked if that was rounded up to it.
    """
    against = arith.constant(ir.F32Type.get(), -scale)
    marks = _number(0)
    for value in reversed(values):
        below = arith.bitcast(ir.IntegerType.get_signless(32), math.fma(value, against, bound))
        marks = llvm.intr_fshl(marks, below, _number(1))
    return marks


def _marks(flags):
    """A bit for each of up to 32 truths."""
    marks = _number(0)
    for i, flag in enumerate(flags):
        marks = arith.ori(marks, arith.select(flag, _number(1 << i), _number(0)))
    return marks


def _first_marks(marks, most, number: int):
    """The first `most` of the marks among `number` bits; none if that is negative."""
    kept = _number(0)
    for i in range(number):
        bit = arith.andi(marks, _number(1 << i))
        wanted = arith.andi(_is_set(bit), arith.cmpi(arith.CmpIPredicate.sgt, most, _number(0)))
        kept = arith.select(wanted, arith.ori(kept, bit), kept)
        most = arith.subi(most, arith.extui(ir.IntegerType.get_signless(32), wanted))
    return kept


def _is_set(bits):
    return arith.cmpi(arith.CmpIPredicate.ne, bits, _number(0))


def _number(x: int):
    return arith.constant(ir.IntegerType.get_signless(32), x - (1 << 32) if x >= 1 << 31 else x)
