"""The kernels of all GPUs, and the schedule of what no rule wrote."""

from __future__ import annotations

from functools import partial

import tvm
import tvm.s_tir.dlight as dl
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.base import try_inline

from cupola.runtime.errors import UnsupportedError
from cupola.targets.gpu.attention import decode
from cupola.targets.gpu.attention.plain import lower_paged_attention
from cupola.targets.gpu.emit import WARP
from cupola.targets.gpu.experts import lower_expert_linear, lower_top_k
from cupola.targets.gpu.linear.hopper import HopperStage
from cupola.targets.gpu.linear.matmul import lower_matmul
from cupola.targets.gpu.linear.plain import lower_linear
from cupola.targets.gpu.linear.register_stages import RegisterStage
from cupola.targets.gpu.recurrent import lower_recurrences
from cupola.targets.gpu.rows import lower_embedding, lower_norm, lower_rotary, lower_take
from cupola.targets.gpu.sampling.argmax import lower_argmax, lower_block_maxima
from cupola.targets.gpu.sampling.draw import lower_sample
from cupola.targets.ops import Argmax, BlockMaxima, Sample

RULES = (
    lower_linear, lower_embedding, lower_take, lower_norm, lower_rotary, lower_paged_attention, lower_block_maxima, lower_argmax,
    lower_sample, lower_expert_linear, lower_top_k, lower_recurrences,
)  # fmt: skip
# In front of those, where there are matrix units: a table that embeds tokens may be the vocabulary's projection as well.
MATRIX_RULES = (
    lower_matmul, partial(lower_embedding, tiled=True), partial(lower_take, tiled=True), decode.lower_paged_attention,
)  # fmt: skip
HOPPER_RULES = (partial(lower_matmul, stage=HopperStage), *MATRIX_RULES[1:])  # in place of those, where warpgroups multiply
REGISTER_RULES = (partial(lower_matmul, stage=RegisterStage), *MATRIX_RULES[1:])  # and where copies go through registers
OPTIONAL = (BlockMaxima, Argmax, Sample)  # operations that they implement
_BY_ROWS = "cupola.by_rows"


def schedule(target: tvm.target.Target) -> tvm.transform.Pass:
    """Gives threads to PrimFuncs that have none: one for each element, or for each row whose sum, say, its elements wait for."""

    @tvm.transform.module_pass(opt_level=0)
    def give_threads(mod: tvm.IRModule, context: object) -> tvm.IRModule:
        with target:
            return _rows_alone(dl.ApplyDefaultSchedule(_by_rows, dl.gpu.Fallback())(mod))

    return give_threads


@tirx.transform.prim_func_pass(opt_level=0)
def _rows_alone(func: tirx.PrimFunc, mod: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """Shrinks what a thread of `_by_rows` keeps to its own row. Raises UnsupportedError for what has no known size."""
    if not func.attrs or _BY_ROWS not in func.attrs:
        return func
    passes = [s_tir.transform.LowerInitBlock(), s_tir.transform.PlanAndUpdateBufferAllocationLocation()]
    passes += [s_tir.transform.ConvertBlocksToOpaque(), s_tir.transform.CompactBufferAllocation()]
    alone = tvm.transform.Sequential(passes)(tvm.IRModule({"main": func.without_attr(_BY_ROWS)}))["main"]

    def check(block: s_tir.SBlock) -> None:
        for buffer in block.alloc_buffers:
            if not all(isinstance(size, tirx.IntImm) for size in buffer.ty.shape):
                problem = f"a stage hands {buffer.name} {list(buffer.ty.shape)} to another one, more than a thread can keep"
                raise UnsupportedError(problem, field="GPUs", fix="give the operation a kernel of its own")

    tvm_ffi.structural_walk(alone.body, (s_tir.SBlock, check))
    return alone


@dl.ScheduleRule.from_callable("by_rows")
def _by_rows(func: tirx.PrimFunc, target: tvm.target.Target, _: bool) -> s_tir.Schedule | None:
    """A thread for each row of the last axis, within which all results stay that stages hand to each other; None if there are no such."""
    scheduled = s_tir.Schedule(func.with_attr(_BY_ROWS, True))
    stages = normalize_prim_func(scheduled)
    if stages is None:
        return None
    *earlier, last = [stage.block_rv for stage in try_inline(scheduled, stages)]
    handed_on = scheduled.get(scheduled.get_sblock("root")).alloc_buffers
    if not earlier or len(handed_on) < len(earlier):
        return None
    *axes, within = scheduled.get_loops(last)
    row = scheduled.fuse(*(axes or [within]))
    for stage in reversed(earlier):
        scheduled.compute_at(stage, row)
        scheduled.set_scope(stage, 0, "local")
    block, thread = scheduled.split(row, [None, WARP])
    scheduled.bind(block, "blockIdx.x")
    scheduled.bind(thread, "threadIdx.x")
    return scheduled
