"""From lowered Relax to a shared library."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import tvm
from tvm import IRModule, relax, tirx

from cupola.compiler.pipeline import Dumps
from cupola.passes.give_outputs import give_outputs
from cupola.passes.rewrite import results_of
from cupola.passes.share_tensors import share_tensors
from cupola.runtime.artifact.inputs import STEP_OUTPUTS
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec
from cupola.runtime.environment import debug_level, interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Target


def plan_memory(mod: IRModule) -> IRModule:
    """Gives every intermediate result a place in storage that others use before and after it."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        share_tensors(),
        give_outputs(),
    ]
    return tvm.transform.Sequential(passes)(mod)


def build_library(mod: IRModule, target: Target, file: Path, dumps: Dumps | None = None) -> None:
    """Compiles `mod`, whose memory is planned, and what the target's libraries carry beside it, into the shared library `file`.

    Raises:
        UnsupportedError: there is no linker on this machine.
    """
    mod = IRModule({**dict(mod.functions_items()), **dict(target.probes().functions_items())}, attrs=mod.attrs)
    with target.tvm, tvm.transform.PassContext(opt_level=3):
        executable = relax.build(mod, target.tvm, relax_pipeline=_virtual_machine_passes(), tir_pipeline=target.lowering)
    for module in target.modules():
        executable.mod.import_module(module)
    if dumps is not None and debug_level() >= 4:
        for module in executable.mod.imports:
            dumps.write("kernels", module.inspect_source("asm"), "s")
    executable.export_library(str(file), fcompile=_link)


def _virtual_machine_passes() -> tvm.transform.Pass:
    """Relax without operators, to calls that TVM's virtual machine makes."""
    return tvm.transform.Sequential(
        [
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def _link(output: str, objects: Sequence[str], *_: object, **__: object) -> None:
    """Links with the machine's C compiler, else with the linker that the package ziglang brings."""
    driver = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    command = [driver] if driver else [*interpreter(), "-m", "ziglang", "cc"]
    if driver is None and find_spec("ziglang") is None:
        raise UnsupportedError("found no C compiler to link the library with", fix="install gcc or clang, or `pip install ziglang`")
    done = subprocess.run([*command, "-shared", "-fPIC", "-o", output, *objects], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        raise UnsupportedError(f"the linker failed: {last}", field=command[0], fix="is there room on the disk, and a working C compiler?")


def signature_of(func: relax.Function, name: str, weights: Sequence[TensorSpec]) -> FunctionSpec:
    """What `func`, whose memory is planned, takes and gives; `weights` are its last parameters, under their own names."""
    params = func.params[: len(func.params) - len(weights)]
    inputs = tuple(_tensor_spec(param.name, param.ty) for param in params)
    once, twice, rows = (_storage_bytes(func, n, r) for n, r in ((1, 1), (2, 1), (1, 2)))
    given = tuple(spec for spec in inputs if any(spec.name == line.name for line in STEP_OUTPUTS))  # by the caller, to write to
    outputs = given or tuple(_tensor_spec(output, result.ty) for output, result in results_of(func).items())
    return FunctionSpec(name, (*inputs, *weights), outputs, twice - once, rows - once)


def _storage_bytes(func: relax.Function, num_tokens: int, num_rows: int) -> int:
    """Bytes of storage that a call for that many tokens and rows of logits plans for."""
    bound = func.bind_symbolic_vars({name: size for name, size in (("n", num_tokens), ("r", num_rows)) if _has_dimension(func, name)})
    calls = (binding.value for block in bound.body.blocks for binding in block.bindings)
    storages = (call for call in calls if isinstance(call, relax.Call) and call.op == tvm.ir.Op.get("relax.memory.alloc_storage"))
    return sum(int(size) for storage in storages for size in storage.args[0])


def _has_dimension(func: relax.Function, name: str) -> bool:
    return any(str(size) == name for param in func.params for size in param.ty.shape)


def _tensor_spec(name: str, type_: relax.TensorType) -> TensorSpec:
    return TensorSpec(name, str(type_.dtype), tuple(_size(size) for size in type_.shape))


def _size(size: tirx.Expr) -> int | str:
    """A known dimension, or its formula: TVM prints constants with their types, `b + T.int64(1)`."""
    return int(size) if isinstance(size, tirx.IntImm) else re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))
