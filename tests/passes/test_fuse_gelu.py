from __future__ import annotations

from tvm.script import relax as R

from cupola.passes.fuse_gelu import fuse_gelu
from tests.passes.harness import becomes, same_numbers, stays


@R.function
def spelled_out(x: R.Tensor(("n", 64), "float32")):
    with R.dataflow():
        cubic = R.multiply(R.power(x, R.const(3.0, "float32")), R.const(0.044715, "float32"))
        inner = R.multiply(R.add(x, cubic), R.const(0.7978845608, "float32"))
        out = R.multiply(R.multiply(x, R.const(0.5, "float32")), R.add(R.tanh(inner), R.const(1.0, "float32")))
        R.output(out)
    return out


@R.function
def commuted(x: R.Tensor(("n", 64), "float32")):
    with R.dataflow():
        cubic = R.multiply(R.const(0.044715, "float32"), R.power(x, R.const(3.0, "float32")))
        inner = R.multiply(R.const(0.7978845608, "float32"), R.add(cubic, x))
        out = R.multiply(R.add(R.const(1.0, "float32"), R.tanh(inner)), R.multiply(R.const(0.5, "float32"), x))
        R.output(out)
    return out


@R.function
def recognized(x: R.Tensor(("n", 64), "float32")):
    with R.dataflow():
        out = R.nn.gelu_tanh(x)
        R.output(out)
    return out


def test_the_formula_is_recognized() -> None:
    becomes(fuse_gelu(), spelled_out, recognized)
    becomes(fuse_gelu(), commuted, recognized)


def test_numbers_stay() -> None:
    same_numbers(fuse_gelu(), spelled_out, (3, 64))


def test_another_constant_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32")):
        with R.dataflow():
            cubic = R.multiply(R.power(x, R.const(3.0, "float32")), R.const(0.0447, "float32"))
            inner = R.multiply(R.add(x, cubic), R.const(0.7978845608, "float32"))
            out = R.multiply(R.multiply(x, R.const(0.5, "float32")), R.add(R.tanh(inner), R.const(1.0, "float32")))
            R.output(out)
        return out

    stays(fuse_gelu(), before)


def test_another_power_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32")):
        with R.dataflow():
            cubic = R.multiply(R.power(x, R.const(2.0, "float32")), R.const(0.044715, "float32"))
            inner = R.multiply(R.add(x, cubic), R.const(0.7978845608, "float32"))
            out = R.multiply(R.multiply(x, R.const(0.5, "float32")), R.add(R.tanh(inner), R.const(1.0, "float32")))
            R.output(out)
        return out

    stays(fuse_gelu(), before)


def test_the_gate_of_another_tensor_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), y: R.Tensor(("n", 64), "float32")):
        with R.dataflow():
            cubic = R.multiply(R.power(y, R.const(3.0, "float32")), R.const(0.044715, "float32"))
            inner = R.multiply(R.add(y, cubic), R.const(0.7978845608, "float32"))
            out = R.multiply(R.multiply(x, R.const(0.5, "float32")), R.add(R.tanh(inner), R.const(1.0, "float32")))
            R.output(out)
        return out

    stays(fuse_gelu(), before)
