"""From kernels with threads to the parts of a library: the device's code, and C that launches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import tvm
import tvm_ffi
from tvm import IRModule

from cupola.runtime.artifact.plan import Plan
from cupola.targets.gpu.cuda import HOPPER
from cupola.targets.gpu.linear.hopper import product_functions
from cupola.targets.gpu.lowering import DeviceCode, split
from cupola.targets.gpu.source import launch_source

_ALIGNMENTS = ("extern __shared__ __align__(64)", "extern __shared__ __align__(1024)")  # TVM's, and what matrices of warpgroups need
_INCLUDE = re.compile(r"^\s*#\s*include\b.*$", re.MULTILINE)
_FUNCTION = re.compile(r"^DEVICE \w+ (\w+)\(", re.MULTILINE)
_IMAGE = """\
/* The kernels, compiled. */
__asm__(
    ".section .rodata\\n"
    ".balign 4096\\n"
    ".globl cupola_image\\n"
    ".hidden cupola_image\\n"
    "cupola_image:\\n"
    ".incbin \\"{file}\\"\\n"
    ".previous\\n");
"""


def write_launches(
    mod: IRModule, plan: Plan, target: tvm.target.Target, folder: Path, passes: Sequence[tvm.transform.Pass] = ()
) -> tuple[DeviceCode, Path]:
    """Splits the kernels of `mod`, and writes the C that launches them."""
    code, file = split(mod, target, passes), folder / "launches.c"
    file.write_text(launch_source(plan.kernels, code.launches), encoding="utf-8")
    return code, file


def cuda_source(code: DeviceCode, target: tvm.target.Target, has_tensor_cores: bool = True) -> str:
    """The kernels in CUDA C++, as TVM writes them, behind the functions that they call of tensor cores: those of `matrix.cuh`, where codes
    are looked up those of `tables.cuh` and, for compute capability 9.0, `hopper.cuh`."""
    with _Uncompiled():
        source = str(tvm.target.codegen.build_module(code.device, target).inspect_source())
    if not has_tensor_cores:
        return source
    head, first, kernels = source.replace(*_ALIGNMENTS).partition('extern "C" __global__')
    functions, tables = (
        _text("matrix.cuh").replace('#include "numbers.cuh"\n', _text("numbers.cuh").partition("\n")[2]),
        _text("tables.cuh"),
    )
    if any(f"{function}(" in kernels or f"{function}<" in kernels for function in _FUNCTION.findall(tables)):
        functions += tables
    if target.attrs["arch"] == HOPPER:
        functions += _text("hopper.cuh") + product_functions()
    return head + functions + first + kernels


def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


def without_includes(source: str) -> str:
    """The source for compilers whose own header has all that CUDA's have."""
    return _INCLUDE.sub("", source)


def write_image(file: Path, folder: Path) -> Path:
    """C that carries `file`, which is what the driver loads."""
    image = folder / "image.c"
    image.write_text(_IMAGE.format(file=file), encoding="utf-8")
    return image


class _Uncompiled:
    """Within it, TVM's code generator leaves CUDA C++ as it is."""

    _name = "tvm_callback_cuda_compile"

    def __enter__(self) -> None:
        self._former: Callable[..., object] | None = tvm_ffi.get_global_func(self._name, allow_missing=True)
        tvm_ffi.register_global_func(self._name, lambda source, *_: source, override=True)

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            tvm_ffi.register_global_func(self._name, self._former, override=True)
