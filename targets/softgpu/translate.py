"""Makes C++ that `softgpu.h` understands of the CUDA C++ that TVM writes: inline PTX becomes C++, an instruction at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cupola.runtime.errors import UnsupportedError
from cupola.targets.gpu.code import without_includes

_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w ]+?)\s+(\w+)\[\];")
_ASSEMBLY = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_COMMENT = re.compile(r"""//[^\n]*|/\*.*?\*/|("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)+')""", re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_STATEMENT = re.compile(r"\s*(?:(?P<label>[$\w]+)\s*:|(?P<brace>[{}])|(?:@(?P<guard>!?[%\w]+)\s+)?(?P<instruction>[^;]+);)\s*")
_TYPES = {"pred": "bool", **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (16, 32, 64)}, "s32": "int32_t", "f32": "float"}

# PTX instructions in C++ (PTX ISA 8.5). A pattern is of whole names, and its groups fields of the C++, as are the operands by number.
_MATRIX = r"(?P<d>[fs]32)\.(?P<a>\w+)\.(?P<b>\w+)\.(?P<c>[fs]32)"
_CTA = r"(\.(release|relaxed)\.cta)?(\.shared(::cta)?)?\.b64"
INSTRUCTIONS = {
    r"dp4a\.(?P<a>[su])32\.(?P<b>[su])32": "{0} = softgpu::dp4a<softgpu::ptx::{a}8, softgpu::ptx::{b}8>({1}, {2}, {3})",
    r"lop3\.b32": "{0} = softgpu::lop3({1}, {2}, {3}, {4})",
    r"prmt\.b32": "{0} = __byte_perm({1}, {2}, {3})",
    r"mov\.[bsuf]\d+": "{0} = {1}",
    r"setp\.eq\.[bsu]\d+": "{0} = {1} == {2}",
    r"setp\.ne\.[bsu]\d+": "{0} = {1} != {2}",
    r"selp\.[bsuf]\d+": "{0} = {3} ? {1} : {2}",
    r"ex2\.approx(\.ftz)?\.f32": "{0} = exp2f({1})",
    r"cvt\.rn\.f16x2\.(?P<a>e4m3|e5m2)x2": "{0} = softgpu_bits<uint32_t>(softgpu::to_halves<softgpu::ptx::{a}>({1}))",
    r"cvt\.rn\.satfinite\.(?P<d>e4m3|e5m2)x2\.f32": "{0} = softgpu_fp8x2<softgpu::ptx::{d}>(make_float2({2}, {1})).__x",
    r"cvta\.to\.shared\.u64": "{0} = softgpu::shared_offset((const void *){1})",
    r"cvt\.u32\.u64": "{0} = (uint32_t)({1})",
    r"cp\.async\.c(?P<cache>[ag])\.shared(::cta)?\.global(\.L2::(64|128|256)B)?": "softgpu::cp_async<'{cache}'>({all})",
    r"cp\.async\.commit_group": "softgpu::cp_async_commit_group()",
    r"cp\.async\.wait_group": "softgpu::cp_async_wait_group({0})",
    r"cp\.async\.wait_all": "softgpu::cp_async_wait_all()",
    r"ldmatrix\.sync\.aligned\.m8n8\.x[124]\.shared(::cta)?\.b16": "softgpu::ldmatrix<false>({0}, {1})",
    r"ldmatrix\.sync\.aligned\.m8n8\.x[124]\.trans\.shared(::cta)?\.b16": "softgpu::ldmatrix<true>({0}, {1})",
    rf"mma\.sync\.aligned\.m16n8k(?P<k>8|16|32)\.row\.col\.{_MATRIX}": (
        "softgpu::mma<{k}, softgpu::ptx::{d}, softgpu::ptx::{a}, softgpu::ptx::{b}, softgpu::ptx::{c}>({0}, {1}, {2}, {3})"
    ),
    r"mbarrier\.init(\.shared(::cta)?)?\.b64": "softgpu::mbarrier_init({0}, {1})",
    r"mbarrier\.inval(\.shared(::cta)?)?\.b64": "softgpu::mbarrier_inval({0})",
    rf"mbarrier\.arrive{_CTA}": "{0} = softgpu::mbarrier_arrive({inputs})",
    rf"mbarrier\.arrive\.expect_tx{_CTA}": "{0} = softgpu::mbarrier_arrive_expect_tx({inputs})",
    rf"mbarrier\.try_wait\.parity(\.acquire\.cta)?{_CTA}": "{0} = softgpu::mbarrier_wait({1}, {2})",
    r"cp\.async\.bulk\.shared::(cluster|cta)\.global\.mbarrier::complete_tx::bytes": "softgpu::bulk_copy({0}, {1}, {2}, {3})",
    r"cp\.async\.bulk\.tensor\.[1-5]d\.shared::(cluster|cta)\.global(\.tile)?\.mbarrier::complete_tx::bytes": "softgpu::tile_copy({all})",
    r"wgmma\.fence\.sync\.aligned": "softgpu::wgmma_fence()",
    r"wgmma\.commit_group\.sync\.aligned": "softgpu::wgmma_commit_group()",
    r"wgmma\.wait_group\.sync\.aligned": "softgpu::wgmma_wait_group({0})",
    r"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k(16|32)\.f32\.(?P<a>\w+)\.(?P<b>\w+)": (
        "softgpu::wgmma<{n}, softgpu::ptx::{a}, softgpu::ptx::{b}>({all})"
    ),
    # What they order or announce has happened already.
    r"fence\.proxy\.async(\.(global|shared::cta|shared::cluster))?": "(void)0",
    r"fence\.mbarrier_init\.release\.cluster": "(void)0",
    r"fence\.(acq_rel|sc)\.(cta|cluster|gpu|sys)": "(void)0",
    r"griddepcontrol\.(wait|launch_dependents)": "(void)0",
    r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32": "(void)0",
}


def translate(source: str, symbols: Sequence[str], head: str = '#include "softgpu.h"\n') -> str:
    """The C++ of the kernels called `symbols` behind `head`, with the table that `driver.c` looks them up in.

    Raises:
        UnsupportedError: the source has an instruction that is not in INSTRUCTIONS.
    """
    code = without_includes(_DYNAMIC.sub(r"\1 *const \2 = (\1 *)softgpu::dynamic;", _without_assembly(source)))
    entries = "\n".join(f"SOFTGPU_ENTRY({symbol})" for symbol in symbols)
    table = "".join(f"  SOFTGPU_KERNEL({symbol}),\n" for symbol in symbols)
    return f'{head}{code}\n{entries}\nextern "C" const softgpu::Kernel softgpu_kernels[] = {{\n{table}  {{}}}};\n'


def _without_assembly(source: str) -> str:
    """The source with C++ in place of each `asm("template" : outputs : inputs);`, and without comments."""
    source = _COMMENT.sub(lambda found: found[1] or " ", source)
    parts: list[str] = []
    at = 0
    while found := _ASSEMBLY.search(source, at):
        end = _end(source, found.end())
        template, *operands = _split(source[found.end() : end], ":")
        values = [_value(operand) for group in operands[:2] for operand in _split(group, ",") if operand.strip()]
        text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', template)).replace("\\n", " ").replace("\\t", " ")
        parts += [source[at : found.start()], "{ ", _Assembly(values, f"softgpu_{len(parts)}_").translated(text), " }"]
        at = end + 1
    return "".join([*parts, source[at:]])


class _Assembly:
    """One template: the C++ of its operands, and the prefix that its registers and labels get there."""

    def __init__(self, values: Sequence[str], prefix: str) -> None:
        self._values, self._prefix = values, prefix
        self._registers: set[str] = set()

    def translated(self, text: str) -> str:
        return " ".join(self._statement(found) for found in _STATEMENT.finditer(text.strip().rstrip(";") + ";"))

    def _statement(self, found: re.Match[str]) -> str:
        if found["label"]:
            return f"{self._prefix}{found['label']}:;"
        if found["brace"]:
            return found["brace"]
        name, rest = [*found["instruction"].split(None, 1), ""][:2]
        if name == ".reg":
            kind, *names = re.findall(r"\w+", rest)
            self._registers.update(names)
            return f"{_TYPES[kind]} {', '.join(self._prefix + name for name in names)};"
        code = f"goto {self._prefix}{rest.strip()};" if name in {"bra", "bra.uni"} else f"{self._instruction(name, rest)};"
        return f"if ({self._operand(found['guard'])}) {code}" if found["guard"] else code

    def _instruction(self, name: str, rest: str) -> str:
        operands = [self._operand(operand.strip()) for operand in _split(rest, ",") if operand.strip()]
        for pattern, code in INSTRUCTIONS.items():
            if found := re.fullmatch(pattern, name):
                return code.format(*operands, all=", ".join(operands), inputs=", ".join(operands[1:]), **found.groupdict())
        raise UnsupportedError(
            f"has no C++ for the instruction {name} {rest.strip()[:60]}".rstrip(), field="target softgpu", fix="add it to `translate.py`"
        )

    def _operand(self, text: str) -> str:
        """The C++ of `%0`, of a vector `{%0, %1}`, of an address `[%0 + 16]`, of a register or of a number."""
        if text.startswith("["):
            text = f"(size_t){text[1:-1].strip()}"
        return re.sub(r"%(\d+)|\b[a-zA-Z_]\w*", self._name, text)

    def _name(self, found: re.Match[str]) -> str:
        if found[1]:
            return f"({self._values[int(found[1])]})"
        return "softgpu::sink" if found[0] == "_" else self._prefix * (found[0] in self._registers) + found[0]


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
