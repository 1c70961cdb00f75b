from __future__ import annotations

from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from cupola.compiler.build import plan_memory, signature_of
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec


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


def test_the_signature_counts_what_intermediate_results_take() -> None:
    @I.ir_module
    class Module:
        @R.function
        def forward(x: R.Tensor(("n", 8), "float32"), rows: R.Tensor(("r",), "int32")) -> R.Tensor(("r", 8), "float32"):
            with R.dataflow():
                a = R.exp(x)
                b = R.sin(a)
                c = R.take(b, rows, axis=0)
                out = R.exp(c)
                R.output(out)
            return out

    planned = plan_memory(relax.transform.LegalizeOps()(Module))
    spec = signature_of(planned["forward"], "forward", [])
    assert (spec.bytes_per_token, spec.bytes_per_logit_row) == (2 * 8 * 4, 8 * 4)  # a and b live at once; c; the result is not counted
