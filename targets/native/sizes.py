"""Sizes as TVM has them, written as plans and manifests have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx

from cupola.runtime.errors import UnsupportedError

_OPERATORS = {
    tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*", tirx.FloorDiv: "//", tirx.Div: "//",  # sizes are not negative
    tirx.LT: "<", tirx.LE: "<=", tirx.GT: ">", tirx.GE: ">=",  # 1 where it is true, else 0
}  # fmt: skip


def size_of(size: Any, names: Mapping[tirx.Var, str] | None = None) -> int | str:
    """A number, or an expression of numbers, names, + - * // and parentheses; `names` are for variables that go by other ones here.

    Raises:
        UnsupportedError: it is made of something else.
    """
    if isinstance(size, int):
        return size
    if isinstance(size, tirx.IntImm):
        return int(size)
    text = _text(size, names or {})
    return text[1:-1] if text.startswith("(") else text


def _text(size: Any, names: Mapping[tirx.Var, str]) -> str:
    if isinstance(size, tirx.IntImm):
        return str(int(size))
    if isinstance(size, tirx.Var):
        return names.get(size, size.name)
    if isinstance(size, tirx.Cast):
        return _text(size.value, names)
    if isinstance(size, tirx.FloorMod):
        a, b = _text(size.a, names), _text(size.b, names)
        return f"({a} - {a} // {b} * {b})"
    if type(size) not in _OPERATORS:
        raise UnsupportedError(f"the size {size} can't be written into a plan", fix="report this model to cupola's authors")
    left, right = _text(size.a, names), _text(size.b, names)
    return f"({left} {_OPERATORS[type(size)]} {right})"
