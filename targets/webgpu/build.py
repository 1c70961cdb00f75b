"""Writes kernels in WGSL, and compiles a library that carries them and launches them by wgpu-native."""

from __future__ import annotations

import json
from pathlib import Path

import tvm
from tvm import IRModule

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.environment import debug_level
from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.runtime.wgpu_native import find_resources
from cupola.targets.base import Abilities, Target
from cupola.targets.gpu.code import write_launches
from cupola.targets.gpu.emit import Gpu, for_gpu
from cupola.targets.gpu.lowering import Launch
from cupola.targets.gpu.rules import RULES, schedule
from cupola.targets.native.code import Code
from cupola.targets.ops import Argmax, BlockMaxima
from cupola.targets.webgpu.merge import merging
from cupola.targets.webgpu.narrow import narrow
from cupola.targets.webgpu.pairs import DTYPE, lower_take, read_pairs
from cupola.targets.webgpu.shaders import write_shaders

RUNTIME = Path(__file__).with_name("webgpu.c")  # which every library holds
GPU = Gpu(warps=1, max_lanes=4, has_shuffles=False)
_LIMITS = {"max_num_threads": 256, "max_shared_memory_per_block": 16384}  # what every GPU has, https://www.w3.org/TR/webgpu/#limits
_FLOATS = ("float32", "float16")  # of WGSL
_ABILITIES = Abilities(activation_bits=(16,), keeps_blocks=False, float_dtypes=(*_FLOATS, DTYPE), kv_dtypes=_FLOATS, latent_attention=False)
_DTYPES = (*_FLOATS, DTYPE, "int32", "uint32")  # of tensors
_TABLE = """\
/* The kernels. */
#define _GNU_SOURCE
#include "{headers}/wgpu.h"
static const struct {{ const char *name, *code, *arguments; int uses_f16; }} shaders[] = {{
{rows}}};
#include "{runtime}"
"""


def webgpu_target() -> Target:
    """The target; the host is Linux on this machine's architecture. Raises UnsupportedError where wgpu-native's headers are missing."""
    find_headers()
    target = tvm.target.Target({"kind": "webgpu", **_LIMITS}, host="llvm")
    return Target(
        spec=DeviceSpec("webgpu", "webgpu", "webgpu", f"{here()}-linux-gnu", ()),
        tvm=target,
        abilities=_ABILITIES,
        kernels=tuple(merging(for_gpu(rule, GPU)) for rule in (lower_take, *RULES)),
        optional=(BlockMaxima, Argmax),  # the host draws tokens
        schedules=(schedule(target),),
        code=_code,
    )


def find_headers() -> Path:
    """The folder of wgpu-native's headers, as pip's package wgpu brings them. Raises UnsupportedError."""
    found = find_resources()
    if found is None:
        raise UnsupportedError("needs the headers of wgpu-native", field="target webgpu", fix="`pip install 'cupola[webgpu]'`")
    return found


def _code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    """Raises UnsupportedError over a tensor of a type that WGSL has not."""
    for kernel in plan.kernels:
        for dtype in {tensor.dtype for tensor in kernel.pointers} - {*_DTYPES}:
            problem = f"the kernel {kernel.name} has a tensor of {dtype}, which WGSL has no type for"
            raise UnsupportedError(problem, field="target webgpu", fix="take --quant f32, bf16, f16, w8a16 or w4a16")
    code, launches = write_launches(mod, plan, target.tvm, folder, [read_pairs, narrow])
    shaders = write_shaders(code.device, target.tvm)
    ordered = [launch for kernel in plan.kernels for launch in code.launches[kernel.name]]
    table = folder / "shaders.c"
    rows = "".join(_row(launch, shaders[launch.symbol]) for launch in ordered)
    table.write_text(_TABLE.format(headers=find_headers(), rows=rows, runtime=RUNTIME), encoding="utf-8")
    texts = {"kernels.wgsl": "\n".join(shaders.values())} if debug_level() >= 4 else {}
    return Code((), (launches, table), texts)


def _row(launch: Launch, code: str) -> str:
    kinds = "".join("t" if not type_ else "l" if type_ == "int64" else "i" for type_, _ in launch.arguments)
    return f"  {{{json.dumps(launch.symbol)}, {json.dumps(code)}, {json.dumps(kinds)}, {int('enable f16;' in code)}}},\n"
