"""From lowered Relax to a shared library and its plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
from tvm import IRModule, relax, tirx

from cupola.compiler.native_source import forward_source
from cupola.compiler.pipeline import Dumps
from cupola.compiler.plan import Extracted
from cupola.passes.give_outputs import give_outputs
from cupola.passes.rewrite import result_names, results_of
from cupola.passes.share_tensors import share_tensors
from cupola.runtime.artifact.manifest import HOST
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec
from cupola.runtime.environment import debug_level
from cupola.targets.base import Target
from cupola.targets.native.interface import SYMBOL

_BLOCKS = 1 << 16  # of a sequence, to find out what intermediate results take for each


def plan_memory(mod: IRModule) -> IRModule:
    """Gives every intermediate result a place in storage that others use before and after it; results become parameters."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        share_tensors(),
        give_outputs(),
    ]
    return tvm.transform.Sequential(passes)(mod)


def build_library(mod: IRModule, extracted: Extracted, target: Target, file: Path, dumps: Dumps | None = None) -> None:
    """Compiles the kernels of `mod`, and a function that does what the plan says, into the shared library `file`.

    Raises:
        UnsupportedError: there is no linker on this machine.
    """
    on_host = target.spec.kind == HOST
    with TemporaryDirectory() as folder:
        forward = Path(folder) / "forward.c"
        forward.write_text(forward_source(extracted.plan, extracted.constants, SYMBOL, on_host=on_host), encoding="utf-8")
        code = target.code(mod, extracted.plan, target, Path(folder))
        if dumps is not None and debug_level() >= 4:
            for name, text in {**code.texts, forward.name: forward.read_text(encoding="utf-8")}.items():
                stem, _, suffix = name.partition(".")
                dumps.write(stem, text, suffix)
        target.link(code.objects, [forward, *code.sources], file)


def signature_of(
    func: relax.Function,
    name: str,
    weights: Sequence[TensorSpec],
) -> FunctionSpec:
    """The signature of `func`, whose memory is planned; `weights` are its last parameters, under their own names."""
    params = func.params[: len(func.params) - len(weights)]
    inputs = tuple(_tensor_spec(param.name, param.ty) for param in params)
    once, twice, rows, tables = (_storage_bytes(func, n, r, blocks) for n, r, blocks in ((1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 1, _BLOCKS)))
    given = tuple(spec for spec in inputs if spec.name in result_names(func))  # by the caller, to write to
    results = {name: result.ty for name, result in results_of(func).items() if isinstance(result.ty, relax.TensorType)}
    outputs = given or tuple(_tensor_spec(name, type_) for name, type_ in results.items())
    return FunctionSpec(name, (*inputs, *weights), outputs, twice - once, rows - once, -(-(tables - once) // _BLOCKS))


def _storage_bytes(func: relax.Function, num_tokens: int, num_rows: int, num_blocks: int) -> int:
    """Bytes of storage that a call plans for: for that many tokens and rows of logits, and a sequence that may have so many blocks."""
    names = [size.name for param in func.params for size in param.ty.shape if isinstance(size, tvm.tirx.Var)]
    sizes = dict.fromkeys(names, num_blocks) | {"n": num_tokens, "r": num_rows, "b": 1}
    bound = func.bind_symbolic_vars({name: sizes[name] for name in names})
    calls = (binding.value for block in bound.body.blocks for binding in block.bindings)
    storages = (call for call in calls if isinstance(call, relax.Call) and call.op == tvm.ir.Op.get("relax.memory.alloc_storage"))
    return sum(int(size) for storage in storages for size in storage.args[0])


def _tensor_spec(name: str, type_: relax.TensorType) -> TensorSpec:
    return TensorSpec(name, str(type_.dtype), tuple(_size(size) for size in type_.shape))


def _size(size: tirx.Expr) -> int | str:
    """A known dimension, or its formula: TVM prints constants with their types, `b + T.int64(1)`."""
    return int(size) if isinstance(size, tirx.IntImm) else re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size))
