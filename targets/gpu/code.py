"""From kernels with threads to the parts of a library: the device's code, and C that launches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
import tvm_ffi
from tvm import IRModule

from cupola.runtime.artifact.plan import Plan
from cupola.targets.gpu.cuda import HOPPER
from cupola.targets.gpu.hopper import product_functions
from cupola.targets.gpu.lowering import DeviceCode, split
from cupola.targets.gpu.source import launch_source

_ALIGNMENTS = ("extern __shared__ __align__(64)", "extern __shared__ __align__(1024)")  # TVM's, and what matrices of warpgroups need


def write_launches(mod: IRModule, plan: Plan, target: tvm.target.Target, folder: Path) -> tuple[DeviceCode, Path]:
    """Splits the kernels of `mod`, and writes the C that launches them."""
    code, file = split(mod, target), folder / "launches.c"
    file.write_text(launch_source(plan.kernels, code.launches), encoding="utf-8")
    return code, file


def cuda_source(code: DeviceCode, target: tvm.target.Target) -> str:
    """The kernels in CUDA C++, as TVM writes them, behind the functions that they call: those of `matrix.cuh` and, for compute capability
    9.0, `hopper.cuh`."""
    with _Uncompiled():
        source = str(tvm.target.codegen.build_module(code.device, target).inspect_source())
    head, first, kernels = source.replace(*_ALIGNMENTS).partition('extern "C" __global__')
    functions = _text("matrix.cuh")
    if target.attrs["arch"] == HOPPER:
        functions += _text("hopper.cuh") + product_functions()
    return head + functions + first + kernels


def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


class _Uncompiled:
    """Within it, TVM's code generator leaves CUDA C++ as it is."""

    _name = "tvm_callback_cuda_compile"

    def __enter__(self) -> None:
        self._former: Callable[..., object] | None = tvm_ffi.get_global_func(self._name, allow_missing=True)
        tvm_ffi.register_global_func(self._name, lambda source, *_: source, override=True)

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            tvm_ffi.register_global_func(self._name, self._former, override=True)
