"""One operation: lowered by the target's rules, compiled, run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from cupola.compiler.native_function import compile_function
from cupola.targets.base import Target
from cupola.targets.cpu.isa import runs_here, with_own_kernels
from cupola.targets.registry import get_target
from tests.targets.toy_target import toy

RUNNABLE = [isa.name for isa in with_own_kernels(multiplies_int8=False) if runs_here(isa)]
GPU = "softgpu"
C_LIBRARY = {"libc", "libm", "libdl", "libpthread"}
DTYPES = {"float32": np.dtype("float32"), "float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def needed_libraries(file: Path) -> set[str]:
    """The names of the libraries that a library loads, but for the loader."""
    needed = subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].partition(".so")[0].rpartition("/")[2] for line in needed.splitlines()}
    return {name for name in names if not name.startswith(("ld-", "linux-"))}


@dataclass(frozen=True)
class Input:
    name: str
    shape: tuple[int | tvm.tirx.Var, ...]
    dtype: str = "float32"


def lower(target: Target, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr:
    """The result of the first rule that takes the call."""
    call = builder.normalize(call)
    return next(result for rule in target.rules if (result := rule(call, builder)) is not None)


def module(target: Target, inputs: Sequence[Input], make: Callable[..., relax.Call]) -> tvm.IRModule:
    """A module whose `main` is one lowered call. The caller may share symbolic sizes between inputs."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(i.name, relax.TensorType(i.shape, i.dtype)) for i in inputs]
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(lower(target, make(*variables), builder))
        builder.emit_func_output(result)
    return builder.get()


def target_of(name: str) -> Target:
    """An instruction set's target; the toy, whose kernels are the generic ones; or that of a GPU which this machine plays."""
    return toy() if name == "toy" else get_target(name if name == GPU else f"cpu:{name}")


def compile_one(isa: str, inputs: Sequence[Input], make: Callable[..., relax.Call]) -> Callable[..., np.ndarray]:
    """A function of arrays that runs the compiled operation. Arrays that it writes to are changed."""
    target = target_of(isa)
    with target.tvm:
        mod = relax.transform.LegalizeOps()(module(target, inputs, make))  # what packs weights
    function = compile_function(mod, target, "main")
    return lambda *arrays: function(*arrays)[0]


def size(name: str) -> tvm.tirx.Var:
    """A size that is known only when the function is called."""
    return tvm.tirx.Var(name, "int64")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()
