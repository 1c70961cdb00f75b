from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import IRModule, relax

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import PackedWeight, lift_weights, overflow_notes
from cupola.passes.encoders import encode, encode_call
from cupola.passes.schemes import SCHEMES
from cupola.runtime.errors import UnsupportedError

op = relax.op
Make = Callable[..., list[relax.Expr]]


def values_of(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape).astype("float32") for shape in shapes]


def module(make: Make, shapes: list[tuple[int, ...]]) -> IRModule:
    """forward(x, layer.0.a, layer.0.b, …): a tuple of x times each expression that `make` writes over the weights."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([], "float32"))
    weights = [relax.Var(f"layer.0.{'abcd'[index]}", relax.TensorType(shape, "float32")) for index, shape in enumerate(shapes)]
    with builder.function("forward", [x, *weights], {"num_input": 1}):
        with builder.dataflow():
            made = [builder.emit(expr) if not isinstance(expr, relax.Var) else expr for expr in make(*weights)]
            used = [builder.emit(op.multiply(expr, builder.emit(op.astype(x, expr.ty.dtype)))) for expr in made]
            out = builder.emit_output(relax.Tuple(used))
        builder.emit_func_output(out)
    return builder.get()


class Loads:
    """Lazy tensors that write down what is read."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.names: list[str] = []
        self.tensors = {f"layer.0.{'abcd'[i]}": self._lazy(f"layer.0.{'abcd'[i]}", array) for i, array in enumerate(arrays)}

    def _lazy(self, name: str, array: np.ndarray) -> LazyTensor:
        def load() -> np.ndarray:
            self.names.append(name)
            return array

        return LazyTensor(name, array.shape, str(array.dtype), load)


def lifted(make: Make, arrays: list[np.ndarray]) -> tuple[IRModule, tuple[PackedWeight, ...], Loads]:
    loads = Loads(arrays)
    return *lift_weights(module(make, [array.shape for array in arrays]), loads.tensors), loads


CASES: dict[str, tuple[Make, Callable[..., np.ndarray], list[tuple[int, ...]]]] = {
    "as it is": (lambda a: [a], lambda a: a, [(4, 6)]),
    "astype": (lambda a: [op.astype(a, "bfloat16")], lambda a: a.astype(ml_dtypes.bfloat16), [(4, 6)]),
    "reshape": (lambda a: [op.reshape(a, (2, 2, 6))], lambda a: a.reshape(2, 2, 6), [(4, 6)]),
    "permute": (lambda a: [op.permute_dims(a, [2, 0, 1])], lambda a: a.transpose(2, 0, 1), [(4, 6, 2)]),
    "reverse": (lambda a: [op.permute_dims(a)], lambda a: a.T, [(4, 6)]),
    "concat": (lambda a, b: [op.concat([a, b], axis=0)], lambda a, b: np.concatenate([a, b]), [(4, 6), (2, 6)]),
    "split": (lambda a: [relax.TupleGetItem(op.split(a, 3, axis=-1), 1)], lambda a: a[:, 2:4], [(4, 6)]),
    "split at": (lambda a: [relax.TupleGetItem(op.split(a, [1, 4], axis=1), 1)], lambda a: a[:, 1:4], [(4, 6)]),
    "slice": (lambda a: [op.strided_slice(a, [1], [1], [6], [2])], lambda a: a[:, 1:6:2], [(4, 6)]),
    "pad": (lambda a: [op.nn.pad(a, (0, 2, 1, 0))], lambda a: np.pad(a, ((0, 2), (1, 0))), [(4, 6)]),
    "shift": (lambda a: [op.add(a, relax.const(1.0))], lambda a: a + 1, [(6,)]),
    "arithmetic": (
        lambda a, b: [op.divide(op.multiply(a, op.negative(b)), op.subtract(a, b))], lambda a, b: (a * -b) / (a - b), [(4, 6), (4, 6)]
    ),
    "power": (lambda a: [op.power(a, relax.const(2.0))], lambda a: a**2, [(6,)]),
    "exp": (lambda a: [op.exp(a)], np.exp, [(6,)]),
    "sum": (lambda a: [op.sum(a, axis=[-1])], lambda a: a.sum(-1), [(4, 6)]),
    "sum of all": (lambda a: [op.sum(a, keepdims=True)], lambda a: a.sum(keepdims=True), [(4, 6)]),
    "sqrt": (lambda a: [op.sqrt(op.exp(a))], lambda a: np.sqrt(np.exp(a)), [(6,)]),
    "tanh": (lambda a: [op.tanh(a)], np.tanh, [(6,)]),
    "softplus": (lambda a: [op.nn.softplus(a)], lambda a: np.logaddexp(0, a).astype(a.dtype), [(6,)]),
    "expand": (lambda a: [op.expand_dims(a, [0, 2])], lambda a: a[None, :, None], [(6,)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_operation_is_evaluated(name: str) -> None:
    make, expected, shapes = CASES[name]
    arrays = values_of(*shapes)
    mod, (weight,), _ = lifted(make, arrays)
    result, want = weight.compute(), expected(*arrays)
    assert result.flags.c_contiguous and (result.shape, result.dtype) == (want.shape, want.dtype)
    np.testing.assert_array_equal(result, want)
    assert weight.spec.shape == want.shape and weight.spec.dtype == str(want.dtype)
    assert [tuple(map(int, var.ty.shape)) for var in mod["forward"].params[1:]] == [want.shape]
    relax.analysis.well_formed(mod)


def test_the_result_runs() -> None:
    arrays = values_of((2, 6), (3, 6))
    mod, weights, _ = lifted(lambda a, b: [op.permute_dims(op.concat([a, b], axis=0))], arrays)
    machine = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    (out,) = machine["forward"](*(tvm.runtime.tensor(v) for v in (np.float32(2), *(weight.compute() for weight in weights))))
    np.testing.assert_array_equal(out.numpy(), 2 * np.concatenate(arrays).T)


def test_one_weight_is_read_at_a_time_and_only_when_asked_for() -> None:
    _, weights, loads = lifted(
        lambda a, b, c, d: [op.concat([a, b], axis=0), op.astype(c, "float16"), d], values_of((2, 4), (2, 4), (4,), (3,))
    )
    assert loads.names == []
    read = {}
    for weight in weights:
        loads.names.clear()
        weight.compute()
        read[weight.spec.name] = list(loads.names)
    assert read == {"layer.0.a+b": ["layer.0.a", "layer.0.b"], "layer.0.c": ["layer.0.c"], "layer.0.d": ["layer.0.d"]}


def test_sources_of_16_bits_are_widened_before_they_are_computed_with() -> None:
    half = values_of((4, 6))[0].astype(ml_dtypes.bfloat16)
    loads = Loads([half])
    _, (weight,) = lift_weights(module(lambda a: [op.add(a, relax.const(1.0))], [(4, 6)]), loads.tensors)
    np.testing.assert_array_equal(weight.compute(), half.astype("float32") + 1)


def test_names_are_unique_and_say_what_is_inside() -> None:
    _, weights, _ = lifted(lambda a: [op.astype(a, "float16"), op.permute_dims(a)], values_of((4, 6)))
    assert [weight.spec.name for weight in weights] == ["layer.0.a", "layer.0.a#2"]


def test_an_operation_that_the_packer_does_not_know_is_named() -> None:
    with pytest.raises(UnsupportedError, match="layer.0.a: goes through sin"):
        lifted(lambda a: [op.reshape(op.sin(a), (24,))], values_of((4, 6)))


def test_what_float16_cannot_hold_is_counted_by_name() -> None:
    a, b = values_of((4, 6), (4, 6))
    a[0, :2], a[1, 0], b[0, 0] = (1e6, -1e6), np.inf, 65504  # an infinity of the source's own is no overflow
    _, weights, _ = lifted(lambda a, b: [op.astype(a, "float16"), op.astype(b, "float16")], [a, b])
    assert overflow_notes(weights) == []
    for weight in weights:
        weight.compute()
    assert overflow_notes(weights) == ["layer.0.a: too large for float16, in which they are stored: 2 values"]


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_are_encoded_one_by_one(transposed: bool) -> None:
    """As one tensor of the source or apart, each as it would be alone."""
    (stacked,) = values_of((3, 64, 32) if transposed else (3, 32, 64))
    loads, storage = Loads([*stacked]), SCHEMES["w4a8"].linear.otherwise
    apart = LazyTensor("layer.0.a", stacked.shape, "float32", lambda: pytest.fail("it is read whole"), slabs=(*loads.tensors.values(),))
    whole = LazyTensor("layer.0.a", stacked.shape, "float32", lambda: stacked)

    def encoded(a: relax.Expr) -> list[relax.Expr]:
        builder = relax.BlockBuilder.current()
        matrices = builder.emit(op.permute_dims(a, [0, 2, 1])) if transposed else a
        codes = builder.emit(encode_call(storage, builder.emit(op.reshape(matrices, (96, 64)))))
        return [relax.TupleGetItem(codes, 0), relax.TupleGetItem(codes, 1)]

    expected = encode("w4g32", np.concatenate([matrix.T if transposed else matrix for matrix in stacked]))
    for tensor in (apart, whole):
        _, weights = lift_weights(module(encoded, [stacked.shape]), {"layer.0.a": tensor})
        for weight, part in zip(weights, expected, strict=True):
            np.testing.assert_array_equal(weight.compute(), part)
    assert loads.names == [*loads.tensors]  # each of them once
