from __future__ import annotations

from pathlib import Path

from tvm import IRModule, relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.compiler.build import build_library, plan_memory, signature_of
from cupola.compiler.pipeline import kernel_passes, run_passes
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec
from cupola.targets.registry import get_target
from tests.instructions import count_instructions


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


def layers(num_layers: int) -> IRModule:
    """As many layers, each a concatenation, a reshape and a sum."""
    builder = relax.BlockBuilder()
    n = T.int64()
    x = relax.Var("x", relax.TensorType([n, 8], "float32"))
    with builder.function("forward", [x]):
        with builder.dataflow():
            state: relax.Expr = x
            for _ in range(num_layers):
                wide = builder.emit(relax.op.concat([state, state], 1))
                halves = builder.emit(relax.op.reshape(wide, [n, 2, 8]))
                state = builder.emit(relax.op.sum(halves, 1))
            result = builder.emit_output(state)
        builder.emit_func_output(result)
    return builder.get()


def test_what_a_step_costs_beside_its_kernels_does_not_grow_with_layers(tmp_path: Path) -> None:
    target, counts = get_target("cpu:generic"), {}
    for num_layers in (4, 12):
        file = tmp_path / f"{num_layers}.so"
        build_library(plan_memory(run_passes(layers(num_layers), kernel_passes(target))), target, file)
        counts[num_layers] = count_instructions(file)
    assert counts[12].kernels - counts[4].kernels == 8 * 2  # the reshape is a view
    assert counts[12].others == counts[4].others < 40
