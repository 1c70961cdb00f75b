"""Kernels in WGSL (https://www.w3.org/TR/WGSL), one shader each.

TVM writes the text. What is left to do: it gives seven digits of numbers where float32 has nine; and it marks tensors that a kernel only
reads, but WebGPU has one state of a buffer during a launch, and many tensors lie in one buffer, the workspace. Tensors of floats, those of
bfloat16 too, are therefore all writable. Tensors of whole numbers are as TVM marks them, for they decide how far loops go and so which
threads come to a barrier, and only of what nobody writes a compiler knows that all threads read the same.
"""

from __future__ import annotations

import math
import re
import struct

import tvm
import tvm_ffi
from tvm import IRModule, tirx

from cupola.targets.webgpu.pairs import SUFFIX

_READ = re.compile(rf"var<storage, read>( \w+ : array<f| \w+{SUFFIX} : )")
# Constants may be no infinity and no NaN, whatever is known at compile time is constant, and what is read from a variable is not.
_FROM_BITS = "fn from_bits(bits : u32) -> f32 { var held = bits; return bitcast<f32>(held); }\n"


def write_shaders(device: IRModule, target: tvm.target.Target) -> dict[str, str]:
    """The WGSL of each kernel by its name."""
    return {gv.name_hint: _shader(gv.name_hint, f, target) for gv, f in device.functions_items()}


def _shader(name: str, kernel: tirx.PrimFunc, target: tvm.target.Target) -> str:
    written = tvm_ffi.structural_map(kernel, (tirx.FloatImm, _exact))
    text = str(tvm.target.codegen.build_module(IRModule({name: written}), target).inspect_source())
    text = _READ.sub(r"var<storage, read_write>\1", text)
    head = "enable f16;\n" if re.search(r"\bf16\b", text) and "enable f16;" not in text else ""
    return head + (_FROM_BITS if "from_bits(" in text else "") + text


def _exact(number: tirx.FloatImm) -> tvm.ir.Expr:
    """A number by its bits, where seven digits do not say which it is."""
    is_short = math.isfinite(number.value) and float(f"{number.value:.6e}") == number.value
    if str(number.ty.dtype) != "float32" or is_short:
        return number
    bits = tirx.IntImm("uint32", struct.unpack("<I", struct.pack("<f", number.value))[0])
    if not math.isfinite(number.value):
        return tirx.call_pure_extern("float32", "from_bits", bits)
    return tirx.reinterpret("float32", bits)
