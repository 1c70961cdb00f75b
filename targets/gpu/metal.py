"""Apple's GPUs, whoever runs their kernels: limits, the kernels in Metal Shading Language, and the runtime that launches them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi
from tvm import IRModule, tirx
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Abilities, Target
from cupola.targets.gpu.attention.simdgroup import lower_paged_attention
from cupola.targets.gpu.code import write_launches
from cupola.targets.gpu.linear.simdgroup import FEW_ROWS, lower_matmul
from cupola.targets.gpu.lowering import DeviceCode, Launch
from cupola.targets.gpu.rules import OPTIONAL, RULES, schedule
from cupola.targets.gpu.vectors import load_words

RUNTIME = Path(__file__).parent / "drivers" / "metal.c"  # which every library holds
KIND = "metal"
MAX_SHARED_BYTES = 32768
LIMITS = {"max_threads_per_block": 256, "max_num_threads": 256, "max_shared_memory_per_block": MAX_SHARED_BYTES, "thread_warp_size": 32}
MAX_BUFFERS = 31  # of a kernel, that with its numbers too (Metal Feature Set Tables)
KERNELS = (lower_matmul, lower_paged_attention, *RULES)
_NUMBERS = {"int64": "8", "int32": "4", "uint32": "4"}  # bytes, as `metal.c` reads them

# TVM's text of each kernel begins with lines that a library may have once. Metal's shuffles take no numbers of 64 bits.
_TVM_HEAD = re.compile(r"#include <metal_stdlib>\nusing namespace metal;\n+union __TVMArgUnion \{[^}]*\};\n+")
_SHARED = re.compile(r"^(\s*)(threadgroup \w+ \w+\[)", re.MULTILINE)  # read and written as vectors
HEAD = """\
#include <metal_stdlib>
using namespace metal;

inline long simd_shuffle(long value, ushort lane) { return as_type<long>(metal::simd_shuffle(as_type<uint2>(value), lane)); }
inline long simd_shuffle_down(long value, ushort away) { return as_type<long>(metal::simd_shuffle_down(as_type<uint2>(value), away)); }

"""


def metal_like(spec: DeviceSpec) -> Target:
    """A target with Metal's kernels; who runs them gives it `code` and `link`."""
    target = tvm.target.Target({"kind": KIND, **LIMITS}, host="llvm")
    abilities = Abilities(activation_bits=(16,), keeps_blocks=False, batch_invariant=False, few_rows=FEW_ROWS, latent_attention=False)
    return Target(spec, target, abilities, kernels=KERNELS, optional=OPTIONAL, schedules=(schedule(target),))


def write_kernels(mod: IRModule, plan: Plan, target: tvm.target.Target, folder: Path) -> tuple[str, tuple[Path, ...]]:
    """The kernels in Metal Shading Language, and C files that carry and launch them."""
    code, launches = write_launches(load_words()(keep_rounding()(mod)), plan, target, folder)
    for symbol, kernel in code.device.functions_items():
        _check_shared(symbol.name_hint, kernel)
    source, image = metal_source(code, target), folder / "image.c"
    image.write_text(_image(source, [launch for kernel in plan.kernels for launch in code.launches[kernel.name]]), encoding="utf-8")
    return source, (launches, image, RUNTIME)


def metal_source(code: DeviceCode, target: tvm.target.Target) -> str:
    """The kernels in Metal Shading Language, as TVM writes them."""
    device = exact_constants()(code.device)
    source = str(tvm.target.codegen.build_module(device, target).inspect_source())
    return HEAD + _SHARED.sub(r"\1alignas(16) \2", _TVM_HEAD.sub("", source))


def exact_constants() -> tvm.transform.Pass:
    """TVM writes seven digits of a number: those that need more are given by their bits.

    Before:  x[i] + T.float32(12582912)
    After:   x[i] + T.reinterpret("float32", T.uint32(0x4b400000))
    """

    def exact(number: tirx.FloatImm) -> tvm.ir.Expr:
        value = np.float32(number.value)
        if str(number.ty.dtype) != "float32" or not np.isfinite(value) or np.float32(f"{value:e}") == value:
            return number
        return T.reinterpret("float32", T.uint32(int(value.view(np.uint32))))

    @tirx.transform.prim_func_pass(opt_level=0)
    def rewrite(func: tirx.PrimFunc, mod: IRModule, context: object) -> tirx.PrimFunc:
        return func.with_body(tvm_ffi.structural_map(func.body, (tirx.FloatImm, exact)))

    return rewrite


def keep_rounding() -> tvm.transform.Pass:
    """TVM computes in float32 what is bfloat16, and drops that a number is rounded to it and back: that is written out.

    Before:  T.cast(T.cast(x, "bfloat16"), "float32")
    After:   T.reinterpret("float32", T.reinterpret("uint32", x) + 0x7fff + (T.reinterpret("uint32", x) >> 16 & 1) & 0xffff0000)
    """

    def rounded(cast: tirx.Cast) -> tvm.ir.Expr:
        inner = cast.value
        if str(cast.ty.dtype) != "float32" or not isinstance(inner, tirx.Cast) or str(inner.ty.dtype) != "bfloat16":
            return cast
        bits = T.reinterpret("uint32", T.cast(inner.value, "float32"))
        nearest = bits + T.uint32(0x7FFF) + ((bits >> T.uint32(16)) & T.uint32(1))
        return T.reinterpret("float32", nearest & T.uint32(0xFFFF0000))

    @tirx.transform.prim_func_pass(opt_level=0)
    def rewrite(func: tirx.PrimFunc, mod: IRModule, context: object) -> tirx.PrimFunc:
        return func.with_body(tvm_ffi.structural_map(func.body, (tirx.Cast, rounded)))

    return rewrite


def _check_shared(name: str, kernel: tirx.PrimFunc) -> None:
    sizes = []

    def add(allocation: tirx.AllocBuffer) -> None:
        type_ = allocation.buffer.ty
        if type_.storage_scope == "shared":
            sizes.append(math.prod(map(int, type_.shape)) * type_.dtype.dtype.itemsize)

    tvm_ffi.structural_walk(kernel.body, (tirx.AllocBuffer, add))
    if sum(sizes) > MAX_SHARED_BYTES:
        problem = f"the kernel {name} shares {sum(sizes)} bytes among a group's threads, of at most {MAX_SHARED_BYTES}"
        raise UnsupportedError(problem, field="target metal", fix="take another target")


def _image(source: str, launches: Iterable[Launch]) -> str:
    """C that carries the kernels, and says what each of them takes."""
    lines = "\n".join(f"  {json.dumps(line)}" for line in source.splitlines(keepends=True))
    parameters = ", ".join(f'"{_parameters(launch)}"' for launch in launches)
    return f"const char cupola_image[] =\n{lines};\nconst char *const cupola_parameters[] = {{{parameters}}};\n"


def _parameters(launch: Launch) -> str:
    types = [type_ for type_, _ in launch.arguments]
    num_pointers = types.count("")
    unknown = next((type_ for type_ in types if type_ and type_ not in _NUMBERS), None)
    problem = (
        f"a number of type {unknown}" if unknown
        else f"{num_pointers} tensors, of at most {MAX_BUFFERS - 1}" if num_pointers >= MAX_BUFFERS
        else "shared memory whose size is not known" if launch.shared
        else ""
    )  # fmt: skip
    if problem:
        raise UnsupportedError(
            f"the kernel {launch.symbol} takes {problem}", field="target metal", fix="split the kernel, or take another target"
        )
    return "".join(_NUMBERS[type_] if type_ else "p" for type_ in types)
