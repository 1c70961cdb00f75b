"""From TIR with threads to device code, and what the host must know to launch it.

A kernel of cupola's may launch several kernels of the device's, one after the other. The passes are TVM's own for GPUs without those that
guess: where memory lies and where threads wait stands in the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import IRModule, s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes

from cupola.runtime.errors import UnsupportedError
from cupola.targets.native.interface import is_tensor, symbolic_sizes
from cupola.targets.native.sizes import size_of

_AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
_SHARED = "tirx.use_dyn_shared_memory"
_PASSES = (
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.UnifyThreadBinding(),
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
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    s_tir.transform.InferFragment(),
    s_tir.transform.LowerThreadAllreduce(),
    s_tir.transform.MergeSharedMemoryAllocations(),
    tirx.transform.SplitHostDevice(),
)


@dataclass(frozen=True)
class Launch:
    """A kernel of the device's, and how it is launched.

    Attributes:
        symbol: its name in the device's code.
        arguments: each with its type, "" for a pointer, and its value over the parameters `a0`, `a1` … of the kernel that launches it.
        extents: blocks along x, y and z, then threads, over the same.
        shared: bytes of memory that its blocks ask for, beside what the code itself says.
    """

    symbol: str
    arguments: tuple[tuple[str, str], ...]
    extents: tuple[int | str, ...]
    shared: int | str = 0


@dataclass(frozen=True)
class DeviceCode:
    """The code of a device's kernels, in TIR, and for each of cupola's kernels its launches."""

    device: IRModule
    launches: dict[str, tuple[Launch, ...]]


def split(mod: IRModule, target: tvm.target.Target, passes: Sequence[tvm.transform.Pass] = ()) -> DeviceCode:
    """Splits each kernel into what the host does and what the device does. `passes` are the target's own, over the device's code.

    Raises:
        UnsupportedError: the host's part is more than launches, as of a kernel that has no threads, or hands memory on.
    """
    kernels = {gv.name_hint: f for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    named = IRModule({name: f.with_attr("global_symbol", name) for name, f in kernels.items()})
    with target, tvm.transform.PassContext(opt_level=3):
        lowered = tvm.transform.Sequential([tirx.transform.BindTarget(target), *_PASSES])(named)
        functions = {gv.name_hint: f for gv, f in lowered.functions_items()}
        device = IRModule({name: f for name, f in functions.items() if name not in kernels})
        device = tvm.transform.Sequential([*passes, tirx.transform.BF16StorageLegalize(), finalize_device_passes()])(device)
    bodies = {name: f for name, f in functions.items() if name not in kernels}
    return DeviceCode(device, {name: tuple(_launches(name, functions[name], bodies)) for name in kernels})


def _launches(name: str, host: tirx.PrimFunc, bodies: dict[str, tirx.PrimFunc]) -> Sequence[Launch]:
    names: dict[Any, str] = {}
    ordered = [p for p in host.params if is_tensor(p)] + [p for p in host.params if not is_tensor(p)]
    for i, param in enumerate([*ordered, *symbolic_sizes(host)]):
        names[param] = f"a{i}"
    found: list[Launch] = []

    def visit(node: Any) -> None:
        if isinstance(node, tirx.DeclBuffer):
            names[node.buffer] = names[node.data.args[0]]
        elif isinstance(node, tirx.Bind):
            names[node.var] = f"({size_of(node.value, names)})"
        elif isinstance(node, tirx.AllocBuffer):
            raise UnsupportedError(
                f"the kernel {name} keeps {node.buffer.name} from one launch to the next", fix="write a rule for its operation"
            )
        elif isinstance(node, tirx.For | tirx.While | tirx.BufferStore | tirx.IfThenElse):
            raise UnsupportedError(f"the kernel {name} does something on the host", fix="give it threads")
        elif isinstance(node, tirx.SeqStmt):
            for part in node.seq:
                visit(part)
        elif isinstance(node, tirx.Evaluate) and getattr(node.value.op, "name", "") == "tirx.call_ffi_kernel":
            found.append(_launch(node.value, bodies, names))
        elif hasattr(node, "body"):
            visit(node.body)

    visit(host.body)
    return found


def _launch(call: tvm.ir.Expr, bodies: dict[str, tirx.PrimFunc], names: dict[Any, str]) -> Launch:
    symbol, tags = str(call.args[0].value), [str(tag) for tag in call.attrs.launch_params]
    body = bodies[symbol]
    given = list(call.args)[1:]
    arguments, sizes = given[: len(body.params)], dict(zip(tags, given[len(body.params) :], strict=True))

    def value(argument: Any, param: Any) -> tuple[str, str]:
        if isinstance(argument, tvm.ir.Call):  # the data of a buffer
            return "", names[argument.args[0]]
        return str(param.ty.dtype), str(size_of(argument, names))

    extents = tuple(size_of(sizes[axis], names) if axis in sizes else 1 for axis in _AXES)
    shared = size_of(sizes[_SHARED], names) if _SHARED in sizes else 0
    return Launch(symbol, tuple(map(value, arguments, body.params)), extents, shared)
