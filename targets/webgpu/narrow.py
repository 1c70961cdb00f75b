"""Whole numbers of 64 bits as ones of 32, the only ones of WGSL: no tensor of its has more elements than these count."""

from __future__ import annotations

from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.expr import BinaryOpExpr, CmpExpr

_WIDE, _NARROW = "int64", "int32"


@tirx.transform.prim_func_pass(opt_level=0)
def narrow(kernel: tirx.PrimFunc, mod: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """The kernel with int32 in place of int64. TVM raises an error over a constant that is too large."""
    variables: dict[tvm.ir.Var, tvm.ir.Var] = {}

    def variable(var: tvm.ir.Var) -> tvm.ir.Var:
        return variables.setdefault(var, tirx.Var(var.name, _NARROW)) if isinstance(var.ty, tvm.ir.PrimType) else var

    wide: dict[type, Callable[..., tvm.ir.Expr]] = {
        tirx.IntImm: lambda e: tirx.IntImm(_NARROW, e.value),
        tirx.Var: variable,
        tirx.Cast: lambda e: tirx.Cast(_NARROW, e.value),
        tvm.ir.TensorLoad: lambda e: tirx.BufferLoad(e.buffer, e.indices),
        tvm.ir.Call: lambda e: tvm.ir.Call(e.op, e.args, e.attrs, e.ty_args, ret_ty=_NARROW),
    }

    def rebuild(e: tvm.ir.Expr) -> tvm.ir.Expr:
        """An expression over parts that are narrow already; constructors find its type."""
        if isinstance(e, BinaryOpExpr | CmpExpr):
            return type(e)(e.a, e.b)
        if isinstance(e, tirx.Select):
            return tirx.Select(e.condition, e.true_value, e.false_value)
        if isinstance(e, tirx.Ramp):
            return tirx.Ramp(e.base, e.stride, e.lanes)
        if isinstance(e, tirx.Let):
            return tirx.Let(e.var, e.value, e.body)
        return wide[type(e)](e) if str(e.ty) == _WIDE and type(e) in wide else e

    def memory(type_: tvm.ir.PrimType) -> tvm.ir.PrimType:
        return tvm.ir.PrimType(_NARROW) if str(type_.dtype) == _WIDE else type_

    return tvm_ffi.structural_map(kernel, [(tvm.ir.Expr, rebuild), (tvm.ir.PrimType, memory)])
