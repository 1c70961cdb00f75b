"""From TIR to what LLVM takes: TVM's own passes, those that CPU kernels need.

Left out of TVM's default list is what is for GPUs, and two passes that do harm here: CompactBufferAllocation, which takes longer over large
kernels than all else together and has nothing to find in them; and CanonicalizeLoop, which forgets the bounds of inner loops.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.ir import transform
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from cupola.targets.native.exponentials import expand_exponentials
from cupola.targets.native.interface import plain_interface

LOWERING = "cupola_native"


def lowering() -> tuple[transform.Pass, object, object]:
    """The passes, and TVM's own last ones."""
    passes = [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(),
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        expand_exponentials,
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        plain_interface(),
    ]
    return transform.Sequential(passes), finalize_host_passes, finalize_device_passes


register_tir_pipeline(LOWERING, lowering)
