"""Schedules for the PrimFuncs that no rule wrote (TVM's own legalizations, fused): slices, sums, casts, small reductions.

    before:  for i, j in grid(n, 64): B[i, j] = f(A[i, j])        # one thread, one element at a time
    after:   if n * 64 < 32768: the loop, vectorized              # a parallel region costs more than it saves
             else: for i in parallel(n): …, vectorized

A function that does not look like this stays as it is: slow, but right.
"""

from __future__ import annotations

import contextlib
import functools
import operator

import tvm
from tvm import s_tir, tirx

from cupola.targets.cpu.emit.loops import PARALLEL_FROM
from cupola.targets.cpu.isa import ISA

_SCHEDULED = "tirx.is_scheduled"
_SPATIAL = 0  # tirx.IterVar.DataPar


def schedule_elementwise(isa: ISA) -> tvm.transform.Pass:
    """The pass for one instruction set."""

    def apply(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        mod = tvm.IRModule(mod.functions, attrs=mod.attrs)
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not (func.attrs and func.attrs.get(_SCHEDULED)):
                mod[gv] = schedule(func, isa).with_attr(_SCHEDULED, True)
        return mod

    return tvm.transform.module_pass(apply, opt_level=0, name="ScheduleElementwise")


def schedule(func: tirx.PrimFunc, isa: ISA) -> tirx.PrimFunc:
    """`func`, vectorized, and parallel where it is worth it."""
    try:
        inlined = _inline_producers(func)
        serial, parallel = (_schedule_blocks(inlined, isa, parallel) for parallel in (False, True))
    except s_tir.ScheduleError:
        return func
    work, reduces = _work(inlined)
    if isinstance(work, tirx.IntImm):
        return serial if int(work) < PARALLEL_FROM else parallel
    # A reduction binds variables, which no function may do twice.
    return parallel if reduces else _either(work < PARALLEL_FROM, serial, parallel)


def _inline_producers(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Computes elementwise intermediates where they are used."""
    sch = s_tir.Schedule(func)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        if all(var.iter_type == _SPATIAL for var in sch.get(block).iter_vars) and sch.get_consumers(block):
            with contextlib.suppress(s_tir.ScheduleError):  # what can't be computed in place keeps its buffer
                sch.compute_inline(block)
    return sch.mod["main"]


def _schedule_blocks(func: tirx.PrimFunc, isa: ISA, parallel: bool) -> tirx.PrimFunc:
    sch = s_tir.Schedule(func)
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        loops, kinds = sch.get_loops(block), [var.iter_type for var in sch.get(block).iter_vars]
        if len(loops) != len(kinds) or not loops:
            continue
        num_spatial = next((i for i, kind in enumerate(kinds) if kind != _SPATIAL), len(kinds))
        spatial, reduction = loops[:num_spatial], loops[num_spatial:]
        vector = _vector_loop(sch, spatial, isa) if not reduction else None
        outer = spatial[:-1] + ([vector[0]] if vector else spatial[-1:])
        if outer and parallel:
            sch.parallel(sch.fuse(*outer))
        if vector:
            sch.vectorize(vector[1])
        if reduction and spatial:
            sch.decompose_reduction(block, sch.get_loops(block)[1 if parallel else num_spatial])
    return sch.mod["main"]


def _vector_loop(sch: s_tir.Schedule, spatial: list[s_tir.schedule.LoopRV], isa: ISA) -> list[s_tir.schedule.LoopRV] | None:
    extent = sch.get(spatial[-1]).extent
    if not isinstance(extent, tirx.IntImm) or int(extent) % isa.lanes != 0:
        return None
    return sch.split(spatial[-1], [None, isa.lanes])


def _work(func: tirx.PrimFunc) -> tuple[tirx.Expr, bool]:
    """Iterations of all nests together, and whether one of them reduces."""
    sch = s_tir.Schedule(func)
    work, reduces = tirx.IntImm("int64", 0), False
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        work = work + functools.reduce(operator.mul, [sch.get(loop).extent for loop in sch.get_loops(block)], tirx.IntImm("int64", 1))
        reduces = reduces or any(var.iter_type != _SPATIAL for var in sch.get(block).iter_vars)
    return tvm.sym.Analyzer().simplify(work), reduces


def _either(small: tirx.Expr, serial: tirx.PrimFunc, parallel: tirx.PrimFunc) -> tirx.PrimFunc:
    """Both versions in one function."""
    root = serial.body.block
    body = tirx.IfThenElse(small, root.body, parallel.body.block.body)
    block = s_tir.SBlock([], root.reads, root.writes, root.name_hint, body, alloc_buffers=root.alloc_buffers, annotations=root.annotations)
    return serial.with_body(s_tir.SBlockRealize([], True, block))
