"""The kernels of all GPUs, and the schedule of what no rule wrote."""

from __future__ import annotations

from functools import partial

import tvm
import tvm.s_tir.dlight as dl

from cupola.targets.gpu.attention import lower_paged_attention
from cupola.targets.gpu.draw import lower_sample
from cupola.targets.gpu.hopper import HopperStage
from cupola.targets.gpu.linear import lower_linear
from cupola.targets.gpu.matmul import lower_matmul
from cupola.targets.gpu.rows import lower_embedding, lower_norm, lower_rotary, lower_take
from cupola.targets.gpu.sampling import lower_argmax, lower_block_maxima
from cupola.targets.ops import Argmax, BlockMaxima, Sample

RULES = (
    lower_linear, lower_embedding, lower_take, lower_norm, lower_rotary, lower_paged_attention, lower_block_maxima, lower_argmax,
    lower_sample,
)  # fmt: skip
# In front of those, where there are matrix units: a table that embeds tokens may be the vocabulary's projection as well.
MATRIX_RULES = (lower_matmul, partial(lower_embedding, tiled=True), partial(lower_take, tiled=True))
HOPPER_RULES = (partial(lower_matmul, stage=HopperStage), *MATRIX_RULES[1:])  # in place of those, where warpgroups multiply
OPTIONAL = (BlockMaxima, Argmax, Sample)  # operations that they implement


def schedule(target: tvm.target.Target) -> tvm.transform.Pass:
    """Gives threads to PrimFuncs that have none: one for each element."""

    @tvm.transform.module_pass(opt_level=0)
    def give_threads(mod: tvm.IRModule, context: object) -> tvm.IRModule:
        with target:
            return dl.ApplyDefaultSchedule(dl.gpu.Fallback())(mod)

    return give_threads
