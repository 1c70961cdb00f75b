"""Functions on weights that run once, at compile time, in numpy: the IR calls them by name.

    @weight_function
    def encode_w8(weight): …                                # numpy arrays in and out

    call_weight_function(encode_w8, [weight], [codes, scales])    # in a pass or a kernel rule: a Relax call of these types
    call_weight_function(pack_codes, ["w4g32", codes], packed)    # texts go along as they are
    function_of(call)                                             # where weights are packed: the function again

They may stand on weights alone, so that they are lifted out of the model. They take and give numpy arrays; a function of several
results gives a tuple. GGUF's blocks, for instance, stay what they are by such functions. One whose result comes strip by strip, each of
some rows of its arguments, says so by `strips`: its result is then made in threads, and never whole in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from cupola.targets.ops import PREFIX, op_name

WeightFunction = Callable[..., Any]
Rows: TypeAlias = npt.NDArray[np.int64]
Strips: TypeAlias = Callable[[str, tuple[int, int]], Iterator[tuple[str, Rows]]]
"""From the text that is a function's first argument, and the shape [N, K] of its second: for each strip in order the text and the rows
of its arguments of which the function makes it."""
_MARK = "weight."
_FUNCTIONS: dict[str, WeightFunction] = {}
_STRIPS: dict[WeightFunction, Strips] = {}


def weight_function(function: WeightFunction) -> WeightFunction:
    """Registers `function` under its own name, which must be its alone. A decorator."""
    assert function.__name__ not in _FUNCTIONS, function.__name__
    _FUNCTIONS[function.__name__] = function
    return function


def in_strips(strips: Strips) -> Callable[[WeightFunction], WeightFunction]:
    """A decorator as `weight_function`, for a function whose result comes in such strips."""

    def register(function: WeightFunction) -> WeightFunction:
        _STRIPS[weight_function(function)] = strips
        return function

    return register


def strips_of(function: WeightFunction) -> Strips | None:
    """The strips that a function's result comes in, or None if it comes whole."""
    return _STRIPS.get(function)


def call_weight_function(function: WeightFunction, arguments: Sequence[relax.Expr | str], out: relax.Type | list[relax.Type]) -> relax.Call:
    """The call of a registered function on weights and texts, whose result has the type `out` (or types, as a tuple)."""
    fields = [tvm.ir.StringImm(each) if isinstance(each, str) else each for each in arguments]
    return relax.op.call_dps_packed(PREFIX + _MARK + function.__name__, relax.Tuple(fields), out_ty=out)


def function_of(call: relax.Expr) -> WeightFunction | None:
    """The function that `call` calls, or None if it is no call of one."""
    name = op_name(call)
    return None if name is None else _FUNCTIONS.get(name.removeprefix(_MARK)) if name.startswith(_MARK) else None
