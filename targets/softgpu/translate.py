"""Makes C++ that `softgpu.h` understands of the CUDA C++ that TVM writes: inline PTX becomes C++, an instruction at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cupola.runtime.errors import UnsupportedError

_INCLUDE = re.compile(r"^\s*#\s*include\b.*$", re.MULTILINE)  # `softgpu.h` has all that is needed of them
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w ]+?)\s+(\w+)\[\];")
_ASSEMBLY = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_CLOSING = {"(": ")", "[": "]", "{": "}"}

# PTX instructions in C++, over their operands (PTX ISA 8.5). dp4a is a product of four bytes, signed or not, and a sum.
INSTRUCTIONS = {
    "dp4a.s32.s32": "{0} = softgpu::dp4a<int8_t, int8_t>({1}, {2}, {3})",
    "dp4a.s32.u32": "{0} = softgpu::dp4a<int8_t, uint8_t>({1}, {2}, {3})",
    "dp4a.u32.s32": "{0} = softgpu::dp4a<uint8_t, int8_t>({1}, {2}, {3})",
    "dp4a.u32.u32": "{0} = softgpu::dp4a<uint8_t, uint8_t>({1}, {2}, {3})",
}


def translate(source: str, symbols: Sequence[str]) -> str:
    """The C++ of the kernels called `symbols`, with the table that `driver.c` looks them up in.

    Raises:
        UnsupportedError: the source has an instruction that is not in INSTRUCTIONS.
    """
    code = _INCLUDE.sub("", _DYNAMIC.sub(r"\1 *const \2 = (\1 *)softgpu::dynamic;", _without_assembly(source)))
    entries = "\n".join(f"SOFTGPU_ENTRY({symbol})" for symbol in symbols)
    table = "".join(f"  SOFTGPU_KERNEL({symbol}),\n" for symbol in symbols)
    return f'#include "softgpu.h"\n{code}\n{entries}\nextern "C" const softgpu::Kernel softgpu_kernels[] = {{\n{table}  {{}}}};\n'


def _without_assembly(source: str) -> str:
    """The source with C++ in place of each `asm("template" : outputs : inputs);`."""
    parts, at = [], 0
    while found := _ASSEMBLY.search(source, at):
        end = _end(source, found.end())
        template, *operands = _split(source[found.end() : end], ":")
        values = [_value(operand) for group in operands[:2] for operand in _split(group, ",") if operand.strip()]
        text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace("\\n", " ").replace("\\t", " ")
        statements = [_statement(part.strip(), values) for part in text.split(";") if part.strip()]
        parts += [source[at : found.start()], "{ ", " ".join(statements), " }"]
        at = end + 1
    return "".join([*parts, source[at:]])


def _statement(text: str, values: Sequence[str]) -> str:
    name, _, rest = text.partition(" ")
    if name not in INSTRUCTIONS:
        raise UnsupportedError(f"has no C++ for the instruction {text[:80]}", field="target softgpu", fix="add it to `translate.py`")
    operands = [re.sub(r"%(\d+)", lambda found: f"({values[int(found[1])]})", operand.strip()) for operand in rest.split(",")]
    return INSTRUCTIONS[name].format(*operands) + ";"


def _value(operand: str) -> str:
    """The C++ of an operand such as `"r"(x + 1)`."""
    return operand[operand.index("(", operand.rindex('"')) + 1 : operand.rindex(")")]


def _end(text: str, start: int) -> int:
    """The index of the bracket that closes the one before `start`."""
    depth, i = 1, start
    while depth:
        if text[i] == '"':
            i = _end_of_string(text, i)
        depth += (text[i] in _CLOSING) - (text[i] in _CLOSING.values())
        i += 1
    return i - 1


def _end_of_string(text: str, start: int) -> int:
    i = start + 1
    while text[i] != '"':
        i += 2 if text[i] == "\\" else 1
    return i


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators outside of brackets and strings."""
    parts, start, i = [], 0, 0
    while i < len(text):
        if text[i] == '"':
            i = _end_of_string(text, i)
        elif text[i] in _CLOSING:
            i = _end(text, i + 1)
        elif text[i] == separator:
            parts.append(text[start:i])
            start = i + 1
        i += 1
    return [*parts, text[start:]]
