from __future__ import annotations

import numpy as np
import tvm
from tvm.script import relax as R

from cupola.passes.fuse_layer_norm import fuse_layer_norm
from tests.passes.harness import apply, same_numbers, stays


@R.function
def centered(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
    with R.dataflow():
        center = R.subtract(x, R.mean(x, axis=[-1], keepdims=True))
        out = R.nn.rms_norm(center, weight, axes=[-1], epsilon=1e-5)
        R.output(out)
    return out


def test_a_centered_rms_norm_is_a_layer_norm_without_a_bias() -> None:
    (binding,) = apply(fuse_layer_norm(), centered)["forward"].body.blocks[0].bindings
    x, weight, bias = binding.value.args
    assert binding.value.op.name == "relax.nn.layer_norm" and (x.name, weight.name) == ("x", "weight")
    assert isinstance(bias, tvm.ir.GenericConst) and not np.any(bias.value.numpy()) and bias.value.numpy().shape == (64,)
    assert abs(binding.value.attrs.epsilon - 1e-5) < 1e-12 and [int(axis) for axis in binding.value.attrs.axes] == [-1]


def test_numbers_stay() -> None:
    same_numbers(fuse_layer_norm(), centered, (3, 64), (64,))


def test_the_mean_of_another_tensor_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), y: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            center = R.subtract(x, R.mean(y, axis=[-1], keepdims=True))
            out = R.nn.rms_norm(center, weight, axes=[-1], epsilon=1e-5)
            R.output(out)
        return out

    stays(fuse_layer_norm(), before)


def test_a_mean_over_another_axis_stays() -> None:
    @R.function
    def before(x: R.Tensor((64, 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            center = R.subtract(x, R.mean(x, axis=[0], keepdims=True))
            out = R.nn.rms_norm(center, weight, axes=[-1], epsilon=1e-5)
            R.output(out)
        return out

    stays(fuse_layer_norm(), before)


def test_a_mean_without_its_axis_stays() -> None:
    """In a square, it would be subtracted from columns."""

    @R.function
    def before(x: R.Tensor((64, 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            center = R.subtract(x, R.mean(x, axis=[-1]))
            out = R.nn.rms_norm(center, weight, axes=[-1], epsilon=1e-5)
            R.output(out)
        return out

    stays(fuse_layer_norm(), before)


def test_the_mean_less_the_tensor_stays() -> None:
    @R.function
    def before(x: R.Tensor(("n", 64), "float32"), weight: R.Tensor((64,), "float32")):
        with R.dataflow():
            center = R.subtract(R.mean(x, axis=[-1], keepdims=True), x)
            out = R.nn.rms_norm(center, weight, axes=[-1], epsilon=1e-5)
            R.output(out)
        return out

    stays(fuse_layer_norm(), before)
