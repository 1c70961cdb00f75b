"""Exponentials of vectors as arithmetic on vectors. LLVM would call the C library, once for each lane."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx

from cupola.targets.emit import Value

_HIGHEST, _LOWEST = 88.72283, -87.33654  # of float32's: e^x is infinite above, and below less than any normal number
_ROUND = 1.5 * 2.0**23  # adding it rounds to an integer, which then stands in the low bits
_LN2_HIGH = 355 / 512  # few bits: times an integer it is exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_DEGREE = 6


@tirx.transform.prim_func_pass(opt_level=0)
def expand_exponentials(kernel: tirx.PrimFunc, mod: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """Vectors of float32 alone; a scalar's function is the C library's.

    Before:  T.sigmoid(x[T.Ramp(i, 1, 16)])
    After:   T.Div(1, 1 + (a polynomial · 2^n, by fused multiply-adds and the bits of n))
    """

    def expand(call: Value) -> Value:
        write = _FUNCTIONS.get(getattr(call.op, "name", ""))
        kind = str(call.ty)
        return write(call.args[0]) if write is not None and kind.startswith("float32x") else call

    return tvm_ffi.structural_map(kernel, [(tvm.ir.Call, expand)])


def _exp(x: Value) -> Value:
    """e^x to 2 ulp. Below the smallest normal number it is 0."""
    return _let(x, _exp_of)


def _exp_of(x: Value) -> Value:
    clamped = tirx.Min(tirx.Max(_splat(_LOWEST, x), x), _splat(_HIGHEST, x))
    found = _let(clamped, lambda x: _let(_fma(x, _splat(math.log2(math.e), x), _splat(_ROUND, x)), lambda shifted: _scaled(x, shifted)))
    beyond = x + _splat(math.inf, x)  # of NaN it is NaN
    return tirx.Select(x <= _splat(_HIGHEST, x), tirx.Select(x >= _splat(_LOWEST, x), found, _splat(0.0, x)), beyond)


def _scaled(x: Value, shifted: Value) -> Value:
    """e^(x − n · ln 2), put together with 2^n."""
    whole = shifted - _splat(_ROUND, x)
    rest = _let(whole, lambda n: _fma(n, _splat(-_LN2_LOW, n), _fma(n, _splat(-_LN2_HIGH, n), x)))
    integers = f"int32x{_lanes(x)}"
    bits = tirx.reinterpret(integers, _let(rest, _polynomial))
    exponents = tirx.reinterpret(integers, shifted) << tirx.Broadcast(tirx.IntImm("int32", 23), _lanes(x))
    return tirx.reinterpret(f"float32x{_lanes(x)}", bits + exponents)


def _polynomial(x: Value) -> Value:
    """Horner's scheme."""
    result = _splat(_COEFFICIENTS[-1], x)
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        result = _fma(result, x, _splat(coefficient, x))
    return result


def _sigmoid(x: Value) -> Value:
    return _splat(1.0, x) / (_splat(1.0, x) + _exp(_splat(0.0, x) - x))


def _tanh(x: Value) -> Value:
    """To 1e-7, absolute."""
    return _splat(1.0, x) - _splat(2.0, x) / (_exp(x * _splat(2.0, x)) + _splat(1.0, x))


def _let(value: Value, body: Callable[[Value], Value]) -> Value:
    """`body` of a value that is computed once."""
    var = tirx.Var("v", str(value.ty))
    return tirx.Let(var, value, body(var))


def _fma(a: Value, b: Value, c: Value) -> Value:
    return tvm.ir.Call(tvm.ir.Op.get("tirx.fma"), [a, b, c], ret_ty=str(c.ty))


def _lanes(like: Value) -> int:
    return int(str(like.ty).removeprefix("float32x"))


def _splat(value: float, like: Value) -> Value:
    return tirx.Broadcast(tirx.FloatImm("float32", value), _lanes(like))


def _fit() -> list[float]:
    """Coefficients of the polynomial that interpolates e^x in the Chebyshev points between −ln 2 / 2 and ln 2 / 2."""
    half = 0.5 * math.log(2)
    fit = np.polynomial.Chebyshev.interpolate(np.exp, _DEGREE, domain=[-half, half])
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


_COEFFICIENTS = _fit()
_FUNCTIONS: dict[str, Callable[[Value], Value]] = {"tirx.exp": _exp, "tirx.sigmoid": _sigmoid, "tirx.tanh": _tanh}
