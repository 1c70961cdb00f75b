"""Makes C++ that `softgpu.h` understands of the CUDA C++ that TVM writes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cupola.runtime.errors import UnsupportedError

_INCLUDE = re.compile(r"^\s*#\s*include\b.*$", re.MULTILINE)  # `softgpu.h` has all that is needed of them
_ASSEMBLY = re.compile(r"\b(asm|__asm__)\s*(volatile|__volatile__)?\s*\(")
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w ]+?)\s+(\w+)\[\];")


def translate(source: str, symbols: Sequence[str]) -> str:
    """The C++ of the kernels called `symbols`, with the table that `driver.c` looks them up in. Raises UnsupportedError."""
    if found := _ASSEMBLY.search(source):
        raise UnsupportedError(f"runs no inline assembly: {' '.join(source[found.start() :].split())[:80]}", field="target softgpu")
    code = _INCLUDE.sub("", _DYNAMIC.sub(r"\1 *const \2 = (\1 *)softgpu::dynamic;", source))
    entries = "\n".join(f"SOFTGPU_ENTRY({symbol})" for symbol in symbols)
    table = "".join(f"  SOFTGPU_KERNEL({symbol}),\n" for symbol in symbols)
    return f'#include "softgpu.h"\n{code}\n{entries}\nextern "C" const softgpu::Kernel softgpu_kernels[] = {{\n{table}  {{}}}};\n'
