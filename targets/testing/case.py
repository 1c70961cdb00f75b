"""A call that a kernel is held to: by a float64 reference when it runs, and by a ledger of what its code costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from cupola.targets.base import Target
from cupola.targets.testing.references import Expected

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = dict[str, Array]
Tensors: TypeAlias = Mapping[str, relax.Expr]
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Sizes:
    """Of a model. Linear layers go from `hidden` to `ffn`; K/V pages hold `block` tokens."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    block: int


SMOLLM2 = Sizes(hidden=576, ffn=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=4096, block=16)
ODD = (
    Sizes(hidden=808, ffn=70, heads=4, kv_heads=2, head_dim=16, vocabulary=35, block=32),
    Sizes(hidden=50, ffn=7, heads=11, kv_heads=1, head_dim=20, vocabulary=300, block=7),
)
IN_TILES = Sizes(hidden=576, ffn=1536, heads=6, kv_heads=2, head_dim=96, vocabulary=4096, block=48)  # attention in tiles takes them


@dataclass(frozen=True)
class Input:
    """An argument of a call, by its name there.

    Attributes:
        shape: a size by name is known only at run time; "n" counts tokens. An input without any is a weight.
        integers: from which to below which integers go.
        without: integers that there are not.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    integers: tuple[int, int] | None = None
    without: tuple[int, ...] = ()

    @property
    def is_weight(self) -> bool:
        """True if it is there at compile time."""
        return all(isinstance(size, int) for size in self.shape)

    def draw(self, random: np.random.Generator, sizes: Mapping[str, int]) -> Array:
        """Values at random; what a matrix of weights makes of others is about as large as they."""
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)
        if self.integers:
            drawn = random.integers(*self.integers, shape, self.dtype)
            return np.where(np.isin(drawn, self.without), drawn.dtype.type(0), drawn) if self.without else drawn
        scale = 1 / math.sqrt(shape[-1]) if self.is_weight and len(shape) == 2 else 1.0
        return (scale * random.standard_normal(shape, "float32")).astype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)


@dataclass(frozen=True)
class KernelCase:
    """One call.

    Attributes:
        name: unique in the catalogue at one set of sizes.
        inputs: in order, weights last.
        emit: the call on them.
        expected: of such arrays, on the target that the case was made for.
        draw: arrays for so many tokens, at random.
        multiplies_int8: whether it sums products of int8.
        may_use_bf16: whether targets whose abilities have `bf16_rows` round to bfloat16 in it.
        batch_invariant: whether a row has the same bits whatever rows stand beside it.
    """

    name: str
    inputs: tuple[Input, ...]
    emit: Callable[[Tensors], relax.Call]
    expected: Callable[[Arrays], Expected]
    draw: Callable[[np.random.Generator, int], Arrays]
    multiplies_int8: bool = False
    may_use_bf16: bool = False
    batch_invariant: bool = True


KernelFactory: TypeAlias = Callable[[Sizes, Target], KernelCase]


def lower_case(case: KernelCase, target: Target) -> tvm.IRModule:
    """A module whose `forward` is the call, lowered by the first of the target's rules that takes it.

    Raises:
        LookupError: no rule does.
    """
    names = dict.fromkeys(size for i in case.inputs for size in i.shape if isinstance(size, str))
    sizes = {name: tvm.tirx.Var(name, "int64") for name in names}
    shapes = [tuple(sizes[size] if isinstance(size, str) else size for size in i.shape) for i in case.inputs]
    variables = [relax.Var(i.name, relax.TensorType(shape, i.dtype)) for i, shape in zip(case.inputs, shapes, strict=True)]
    builder = relax.BlockBuilder()
    with builder.function("forward", variables, attrs={"num_input": sum(not i.is_weight for i in case.inputs)}):
        with builder.dataflow():
            call = builder.normalize(case.emit({variable.name: variable for variable in variables}))
            lowered = next((result for rule in target.rules if (result := rule(call, builder)) is not None), None)
            if lowered is None:
                raise LookupError(f"{target.spec.name} has no kernel for {case.name}")
            result = builder.emit_output(lowered)
        builder.emit_func_output(result)
    return builder.get()


def case_name(*parts: object) -> str:
    """A case's name, of what is true of it: parts that are false or empty are left out."""
    return " ".join(str(part) for part in parts if part)


def at_random(inputs: Sequence[Input]) -> Callable[[np.random.Generator, int], Arrays]:
    """Draws every input for so many tokens."""
    return lambda random, n: {i.name: i.draw(random, {"n": n}) for i in inputs}
