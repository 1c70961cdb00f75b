"""An operation: a call with named, typed fields, written into the IR and read back."""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar, Self, TypeAlias

import tvm
from tvm import relax, tirx

Tensor: TypeAlias = relax.Expr
PREFIX = "cupola."


@dataclass(frozen=True)
class Op:
    """A call with named, typed fields. `emit` writes it into the IR, `match` reads it back."""

    name: ClassVar[str]
    is_optional: ClassVar[bool] = False  # a model can do without

    def emit(self, out: relax.TensorType) -> relax.Call:
        """The call, whose result has the type `out`."""
        values = [(f, getattr(self, f.name)) for f in fields(self)]
        while values and values[-1][1] is values[-1][0].default:
            values.pop()
        arguments = [_encode(value) for _, value in values]
        return relax.op.call_dps_packed(PREFIX + self.name, relax.Tuple(arguments), out_ty=out)

    @classmethod
    def match(cls, expr: relax.Expr) -> Self | None:
        """The operation that `expr` calls, or None if it is another one."""
        if op_name(expr) != cls.name:
            return None
        assert isinstance(expr, relax.Call)
        values = zip(fields(cls), expr.args[1].fields, strict=False)
        return cls(**{f.name: _decode(value, _kinds(cls)[f.name]) for f, value in values})  # type: ignore[arg-type]


def op_name(expr: relax.Expr) -> str | None:
    """The name of the cupola operation that `expr` calls, without its prefix."""
    if not isinstance(expr, relax.Call) or expr.op.name != "relax.call_dps_packed":
        return None
    symbol = str(expr.args[0].global_symbol)
    return symbol.removeprefix(PREFIX) if symbol.startswith(PREFIX) else None


def _encode(value: object) -> relax.Expr:
    if value is None:
        return relax.prim_value(0)
    if isinstance(value, tuple):
        return relax.Tuple(list(value))
    if isinstance(value, str):
        return tvm.ir.StringImm(value)
    if isinstance(value, float):
        return relax.prim_value(tirx.FloatImm("float64", value))
    return relax.prim_value(value) if isinstance(value, int) else value


def _decode(expr: relax.Expr, kind: object) -> object:
    if kind in (int, float, str):
        return typing.cast(typing.Any, kind)(expr.value)
    if isinstance(expr, relax.Tuple):
        return tuple(expr.fields)
    return None if isinstance(expr, tirx.IntImm) else expr


@cache
def _kinds(cls: type[Op]) -> dict[str, object]:
    return typing.get_type_hints(cls)
