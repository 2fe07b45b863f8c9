"""Appending to lists in global memory what is above a bound: what no interpreter simulates, as in `tensor_core.py`."""

import functools

import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, math, memref, nvvm, scf, vector

from subq_jax.kernels.gpu.lanes import Lane, i32, is_set
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

    @plgpu.inline_mgpu(arg_types=(ACC, of_ids, ROWS, ROWS, plgpu.RefType(), plgpu.RefType(), *(ROWS for _ in further)),
                       return_type=plgpu.ShapeDtypeStruct(places.shape, jnp.int32, layout=ROWS))
    def append(_, scores, ids, bounds, places, kept_scores, kept_ids, *further):
        lane = Lane()
        bounds, ends, *equals = map(_of_rows, (bounds, places, *further))
        mine = _ThreadRows(lane, _of_lane(scores), scale, ids, kept_scores, kept_ids, backward)
        marks = [_marks_of_better(x, scale, bound) for x, bound in zip(mine.values, bounds, strict=True)]
        if equals:
            marks = _with_equals(marks, mine.values, bounds, *equals, lane)
        either = arith.ori(*marks)
        some = nvvm.vote_sync(i32(-1), is_set(either), "any", results=[ir.IntegerType.get_signless(1)])
        registers = places.registers.copy()
        for i, end in enumerate(_cond(some, lambda: mine.put_down(marks, either, ends), ends)):
            registers.flat[i] = vector.broadcast(registers.flat[i].type, end)
        return mgpu.FragmentedArray(_registers=registers, _layout=places.layout, _is_signed=True)

    return append(scores, ids, bounds, places, kept_scores, kept_ids, *further)


class _ThreadRows:
    """A thread's part of two rows: its numbers in each, as many for every lane, and where they go."""

    def __init__(self, lane: Lane, values, scale: float, ids, kept_scores, kept_ids, backward: bool):
        self.values, self._lane, self._ids = values, lane, ids
        self._factor = arith.constant(ir.F32Type.get(), scale)
        self._kept_scores, self._kept_ids = kept_scores, kept_ids
        self._further = arith.subi if backward else arith.addi

    def put_down(self, marks, either, ends):
        """Writes what is marked from `ends` on; -> where the rows end then. All lanes of the warp come here."""
        utils.warp_barrier()  # what was loaded from the tables is loaded before another lane overwrites it
        of_warp = utils.redux(either, i32(-1), utils.ReductionKind.OR)
        before, totals = self._lane.counts_before(marks)
        slots = [self._further(*x) for x in zip(ends, before, strict=True)]
        one = lambda i, slots: self._put_down_column(i, marks, slots)
        fine = lambda columns, slots: functools.reduce(lambda slots, i: one(i, slots), columns, slots)
        coarse = lambda columns, slots: _branches(columns, FINE, of_warp, slots, fine)
        _branches(range(len(self.values[0])), COARSE, of_warp, slots, coarse)
        utils.warp_barrier()
        return [self._further(*x) for x in zip(ends, totals, strict=True)]

    def _put_down_column(self, i: int, marks, slots):
        """Writes the lane's `i`-th column of both rows where it is marked; -> where the next ones go."""
        slots = list(slots)
        for half in range(2):
            mine = is_set(arith.andi(marks[half], i32(1 << i)))
            block = self._id(i, half)
            with utils.when(mine):
                at = [self._lane.rows[half], arith.index_cast(ir.IndexType.get(), slots[half])]
                memref.store(arith.mulf(self.values[half][i], self._factor), self._kept_scores, at)
                memref.store(block, self._kept_ids, at)
            slots[half] = self._further(slots[half], arith.extui(ir.IntegerType.get_signless(32), mine))
        return slots

    def _id(self, i: int, half: int):
        if self._ids.shape:
            return vector.extract(self._ids.registers.flat[i - i % 2 + half], [], [i % 2])
        first = arith.addi(self._ids.registers.flat[0], arith.muli(self._lane.quad, i32(len(self.values[half]))))
        return arith.addi(first, i32(i))


def _of_rows(x):
    """The thread's two numbers of an array in `ROWS`."""
    return [vector.extract(register, [], [0]) for register in x.registers.flat]


def _of_lane(x):
    """The thread's numbers of an array in `ACC`, those of its first row and those of its second."""
    return [[vector.extract(register, [], [k]) for register in x.registers.flat[half::2] for k in range(2)]
            for half in range(2)]


def _cond(condition, make, otherwise):
    """Two int32 of `make()` where `condition` holds, else `otherwise`."""
    branch = scf.IfOp(condition, [ir.IntegerType.get_signless(32)] * 2, has_else=True)
    with ir.InsertionPoint(branch.then_block):
        scf.yield_(make())
    with ir.InsertionPoint(branch.else_block):
        scf.yield_(otherwise)
    return list(branch.results)


def _branches(columns, size: int, of_warp, slots, visit):
    """`slots = visit(columns, slots)` for every `size` columns of which a lane of the warp has any marked."""
    for i in range(0, len(columns), size):
        some = columns[i : i + size]
        marked = is_set(arith.andi(of_warp, i32(sum(1 << j for j in some))))
        slots = _cond(marked, functools.partial(visit, some, slots), slots)
    return slots


def _with_equals(marks, values, bounds, most, lane: Lane):
    """`marks`, and those of the first `most` of each row that equal its bound."""
    equal = [_marks([arith.cmpf(arith.CmpFPredicate.OEQ, y, bound) for y in x])
             for x, bound in zip(values, bounds, strict=True)]
    before, _ = lane.counts_before(equal)
    equal = [_first_marks(x, arith.subi(left, earlier), len(values[0]))
             for x, left, earlier in zip(equal, most, before, strict=True)]
    return [arith.ori(*x) for x in zip(marks, equal, strict=True)]


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
