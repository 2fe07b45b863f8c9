"""Appending to lists in global memory what is above a bound: what no interpreter simulates, as in `tensor_core.py`."""

import functools

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, math, memref, nvvm, scf, vector

from subq_jax.kernels.gpu.lanes import LANES, Lane, i32, is_set
from subq_jax.kernels.gpu.tensor_core import ACC, ROWS

COARSE, FINE = 8, 2  # columns of a lane that one branch passes over, and each branch within it


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
    per_lane = scores.shape[1] // LANES  # columns

    @plgpu.inline_mgpu(arg_types=(ACC, of_ids, ROWS, ROWS, plgpu.RefType(), plgpu.RefType(), *(ROWS for _ in further)),
                       return_type=plgpu.ShapeDtypeStruct(places.shape, jnp.int32, layout=ROWS))
    def append(_, scores, ids, bounds, places, kept_scores, kept_ids, *further):
        i32_type, index, lane = ir.IntegerType.get_signless(32), ir.IndexType.get(), Lane()
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
            equal = [_first_marks(x, arith.subi(most, earlier), per_lane)
                     for x, most, earlier in zip(equal, left[0], before, strict=True)]
            marks = [arith.ori(*x) for x in zip(marks, equal, strict=True)]

        either = arith.ori(*marks)
        some = nvvm.vote_sync(i32(-1), is_set(either), "any", results=[ir.IntegerType.get_signless(1)])
        outer = scf.IfOp(some, [i32_type] * 2, has_else=True)
        with ir.InsertionPoint(outer.then_block):
            utils.warp_barrier()  # what was loaded from the tables is loaded before another lane overwrites it
            of_warp = utils.redux(either, i32(-1), utils.ReductionKind.OR)
            before, totals = lane.counts_before(marks)
            forward = arith.subi if backward else arith.addi
            slots = [forward(*x) for x in zip(ends, before, strict=True)]

            def put_down(i, slots):
                slots = list(slots)
                for half in range(2):
                    mine = is_set(arith.andi(marks[half], i32(1 << i)))
                    if of_ids is ACC:
                        block = vector.extract(ids.registers.flat[i - i % 2 + half], [], [i % 2])
                    else:
                        first = arith.addi(ids.registers.flat[0], arith.muli(lane.quad, i32(per_lane)))
                        block = arith.addi(first, i32(i))
                    with utils.when(mine):
                        at = [lane.rows[half], arith.index_cast(index, slots[half])]
                        memref.store(arith.mulf(values[half][i], factor), kept_scores, at)
                        memref.store(block, kept_ids, at)
                    slots[half] = forward(slots[half], arith.extui(i32_type, mine))
                return slots

            def branches(columns, size, slots, visit):  # a branch around every `size` columns
                for i in range(0, len(columns), size):
                    some = columns[i : i + size]
                    branch = scf.IfOp(is_set(arith.andi(of_warp, i32(sum(1 << j for j in some)))), [i32_type] * 2,
                                      has_else=True)
                    with ir.InsertionPoint(branch.then_block):
                        scf.yield_(visit(some, slots))
                    with ir.InsertionPoint(branch.else_block):
                        scf.yield_(slots)
                    slots = list(branch.results)
                return slots

            fine = lambda columns, slots: functools.reduce(lambda slots, i: put_down(i, slots), columns, slots)
            coarse = lambda columns, slots: branches(columns, FINE, slots, fine)
            branches(range(per_lane), COARSE, slots, coarse)
            utils.warp_barrier()
            scf.yield_([forward(*x) for x in zip(ends, totals, strict=True)])
        with ir.InsertionPoint(outer.else_block):
            scf.yield_(ends)
        registers = places.registers.copy()
        for i, end in enumerate(outer.results):
            registers.flat[i] = vector.broadcast(registers.flat[i].type, end)
        return mgpu.FragmentedArray(_registers=registers, _layout=places.layout, _is_signed=True)

    return append(scores, ids, bounds, places, kept_scores, kept_ids, *further)


def _marks_of_better(values, scale: float, bound):
    """A bit for each of up to 32 numbers that `scale` times it is above the bound; none for what is no number.

    The bit is the sign of bound - scale * number, rounded once: a multiplication and a shift, where a comparison needs
    a predicate and a select. A product that rounds down to the bound is marked too, and so is 0 above a bound of -0:
    they go to the list behind their equals, and what cuts a list down compares exactly and prefers the first. What is
    no number is not marked: the GPU's own has sign 0.
    """
    against = arith.constant(ir.F32Type.get(), -scale)
    marks = i32(0)
    for value in reversed(values):
        below = arith.bitcast(ir.IntegerType.get_signless(32), math.fma(value, against, bound))
        marks = llvm.intr_fshl(marks, below, i32(1))
    return marks


def _marks(flags):
    """A bit for each of up to 32 truths."""
    marks = i32(0)
    for i, flag in enumerate(flags):
        marks = arith.ori(marks, arith.select(flag, i32(1 << i), i32(0)))
    return marks


def _first_marks(marks, most, number: int):
    """The first `most` of the marks among `number` bits; none if that is negative."""
    kept = i32(0)
    for i in range(number):
        bit = arith.andi(marks, i32(1 << i))
        wanted = arith.andi(is_set(bit), arith.cmpi(arith.CmpIPredicate.sgt, most, i32(0)))
        kept = arith.select(wanted, arith.ori(kept, bit), kept)
        most = arith.subi(most, arith.extui(ir.IntegerType.get_signless(32), wanted))
    return kept
