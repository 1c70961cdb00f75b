"""Kernels run against their references: each case compiled as models are, its weights packed as those of models are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tvm_ffi

from cupola.compiler.native_function import compile_function
from cupola.compiler.progress import Progress
from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import lift_weights
from cupola.targets.base import Target
from cupola.targets.testing.case import ODD, SMOLLM2, Array, Arrays, KernelCase, lower_case
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, is_implemented


@dataclass(frozen=True)
class KernelResult:
    """How one kernel did: `error` is the largest, in units of what is allowed."""

    kernel: str
    target: str
    error: float

    @property
    def is_right(self) -> bool:
        """True if every element was close enough."""
        return self.error <= 1


CompiledCase: TypeAlias = Callable[[Arrays], Array]
NUM_TOKENS = (1, 2, 7, 33, 130)  # one row, a few, whole tiles and a rest


def compile_case(case: KernelCase, target: Target) -> CompiledCase:
    """The compiled call, as a function of arrays by the names of its inputs."""
    now: Arrays = {}  # the arrays of the current call, which the packing of weights reads

    def lazy(name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
        return LazyTensor(name, shape, dtype, lambda: now[name])

    weights = {i.name: lazy(i.name, tuple(int(size) for size in i.shape), i.dtype) for i in case.inputs if i.is_weight}
    lifted, packed = lift_weights(lower_case(case, target), weights)
    function = compile_function(lifted, target)

    def run(arrays: Arrays) -> Array:
        now.update(arrays)
        tensors = [arrays[i.name].copy() for i in case.inputs if not i.is_weight] + [weight.compute() for weight in packed]
        return function(*tensors)[0]

    return run


def worst_error(case: KernelCase, run: CompiledCase, seed: int = 0) -> float:
    """The largest error of `run`, in units of what is allowed (up to 1 is right), over several numbers of tokens."""
    errors = []
    for num_tokens in NUM_TOKENS:
        arrays = case.draw(np.random.default_rng([seed, num_tokens]), num_tokens)
        errors.append(case.expected(arrays).error(run(arrays)))
    return max(errors)


def check_kernels(targets: Sequence[Target], progress: Progress) -> Iterator[KernelResult]:
    """Runs every kernel of the catalogue, at a real model's sizes and at odd ones, on each of `targets`, which this machine must run.

    A kernel that several of them share runs on the first.
    """
    seen: set[tuple[str, int]] = set()
    for target in targets:
        codes = {_code_of(case, target): case for case in cases_of(target)}
        own = [case for code, case in codes.items() if code not in seen]
        seen |= codes.keys()
        with progress.stage(target.spec.name, len(own)) as advance:
            for case in own:
                yield KernelResult(case.name, target.spec.name, worst_error(case, compile_case(case, target)))
                advance(1)


def cases_of(target: Target) -> list[KernelCase]:
    """The catalogue on a target: all that it implements."""
    return [kernel(sizes, target) for kernel in (*KERNELS, *VARIANTS) for sizes in (SMOLLM2, *ODD) if is_implemented(kernel, target)]


def _code_of(case: KernelCase, target: Target) -> tuple[str, int]:
    """A case and what the target makes of it, before LLVM: equal on targets that share a kernel."""
    return case.name, tvm_ffi.structural_hash(lower_case(case, target), map_free_vars=True)
