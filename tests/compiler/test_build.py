from __future__ import annotations

from tvm.script import relax as R

from cupola.compiler.build import signature_of
from cupola.runtime.artifact import FunctionSpec, TensorSpec


def test_the_signature_spells_sizes_plainly() -> None:
    @R.function
    def forward(starts: R.Tensor(("b + 1",), "int32"), lens: R.Tensor(("b",), "int32"), w: R.Tensor((4, 2), "float32")):
        with R.dataflow():
            out = R.add(w, w)
            R.output(out)
        return out

    weight = TensorSpec("layer.weight", "float32", (4, 2))
    inputs = (TensorSpec("starts", "int32", ("b + 1",)), TensorSpec("lens", "int32", ("b",)), weight)
    assert signature_of(forward, "forward", [weight]) == FunctionSpec("forward", inputs, (TensorSpec("logits", "float32", (4, 2)),))
