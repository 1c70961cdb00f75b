"""A pass applied to one function, compared with what it should become, and run."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax


def module(func: relax.Function) -> IRModule:
    """A module whose `forward` is `func`."""
    return IRModule({"forward": func.without_attr("global_symbol").with_attr("global_symbol", "forward")})


def verified(step: tvm.transform.Pass, mod: IRModule) -> IRModule:
    """Applies `step` to `mod`. Before and after it the IR is verified: `well_formed` raises on the first fault."""
    relax.analysis.well_formed(mod)
    after = step(mod)
    relax.analysis.well_formed(after)
    return after


def apply(step: tvm.transform.Pass, before: relax.Function) -> IRModule:
    """The module that `step` makes of `before`, with the IR verified before and after."""
    return verified(step, module(before))


def becomes(step: tvm.transform.Pass, before: relax.Function, expected: relax.Function) -> None:
    tvm.ir.assert_structural_equal(apply(step, before), module(expected), map_free_vars=True)


def stays(step: tvm.transform.Pass, before: relax.Function) -> None:
    becomes(step, before, before)


def run(mod: IRModule, *arrays: np.ndarray) -> np.ndarray:
    """The result of `forward`, whose operations are Relax's own."""
    machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    return machine["forward"](*map(tvm.runtime.tensor, arrays)).numpy()


def same_numbers(step: tvm.transform.Pass, before: relax.Function, *shapes: tuple[int, ...], dtype: str = "float32") -> None:
    """The pass must not change results on random inputs of these shapes."""
    random = np.random.default_rng(0)
    arrays = [random.normal(size=shape).astype(dtype) for shape in shapes]
    np.testing.assert_allclose(run(apply(step, before), *arrays), run(module(before), *arrays), rtol=1e-5, atol=1e-5)
