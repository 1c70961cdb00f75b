"""Makes C++ that `metal_stdlib` understands of Metal Shading Language: what a kernel's parameters are bound to stands in attributes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cupola.runtime.errors import UnsupportedError

_KERNEL = re.compile(r"\bkernel\s+void\s+(\w+)\s*\((.*?)\)\s*\{", re.DOTALL)
_PARAMETER = re.compile(r"\s*(.+?)\s*(\w+)\s*\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\)\s*)?\]\]\s*", re.DOTALL)
_SHARED = re.compile(r"\b(threadgroup\s+[\w ]+?\s+\w+\s*\[[^;=]*\]\s*;)")
_VECTOR = re.compile(r"\b((?:u?(?:char|short|int|long)|half|float)[234])\(")

# Where a thread finds what an attribute names (Metal Shading Language Specification, 5.2.3.6).
POSITIONS = {
    "threadgroup_position_in_grid": "softgpu::block_index",
    "thread_position_in_threadgroup": "softgpu::me->index",
    "threads_per_threadgroup": "softgpu::block_size",
    "threadgroups_per_grid": "softgpu::grid_size",
}


def translate_metal(source: str) -> str:
    """The C++ of all kernels, with the table that `metal_driver.c` looks them up in.

    Raises:
        UnsupportedError: a parameter has an attribute that is not in POSITIONS, or positions differ in their type.
    """
    found = [(name, _arguments(name, parameters)) for name, parameters in _KERNEL.findall(source)]
    entries = "".join(_entry(name, arguments) for name, arguments in found)
    table = "".join(f'  {{"{name}", softgpu_launch_{name}, softgpu_sizes_{name}}},\n' for name, _ in found)
    code = _VECTOR.sub(r"softgpu::vector<\1>(", _SHARED.sub(r"__shared__ \1", source))
    return f'{code}\n{entries}\nextern "C" const softgpu::Kernel softgpu_kernels[] = {{\n{table}  {{}}}};\n'


def _arguments(kernel: str, parameters: str) -> list[str]:
    """The arguments of a kernel's call; buffers come first, in the order of their indices."""
    values, num_buffers, position = [], 0, ""
    for parameter in parameters.split(","):
        found = _PARAMETER.fullmatch(parameter)
        type_, _, attribute, index = found.groups() if found else ("", "", parameter.strip(), None)
        if attribute == "buffer" and index == str(num_buffers):
            pointer = f"({type_.rstrip('&* ')}*)given[{index}]"
            values.append(f"*{pointer}" if type_.endswith("&") else pointer)
            num_buffers += 1
        elif attribute in POSITIONS and type_ == (position := position or type_):
            values.append(f"softgpu::position<{type_}>({POSITIONS[attribute]})")
        else:
            fix = "buffers come in order, the others are in `POSITIONS`, all of one type"
            raise UnsupportedError(f"{kernel} has a parameter that is {attribute:.80}", field="target softmetal", fix=fix)
    return values


def _entry(name: str, arguments: Sequence[str]) -> str:
    sizes = "".join("8, " for argument in arguments if "given" in argument)
    return (
        f"static const unsigned softgpu_sizes_{name}[] = {{{sizes}0}};\n"
        f"static const char* softgpu_launch_{name}(void** arguments, const int64_t* extents, int64_t shared_bytes, unsigned seed) {{\n"
        f"  return softgpu::launch([](void** given) {{ {name}({', '.join(arguments)}); }}, arguments, extents, shared_bytes, seed);\n}}\n"
    )
