"""Costs follow from operations, whatever the target; launches are counted as they are made."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax, tirx
from tvm.tirx.script import builder as T

from cupola.passes.lower_ops import lower_ops
from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.base import Target
from cupola.targets.cost import cost_of, list_kernels, with_cost
from cupola.targets.emit import argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks
from cupola.targets.gpu.lowering import split
from cupola.targets.gpu.rules import schedule
from cupola.targets.native.interface import size_names
from cupola.targets.registry import get_target
from cupola.targets.testing.attention import AttentionKernel
from cupola.targets.testing.case import SMOLLM2, KernelCase, lower_case
from cupola.targets.testing.catalogue import KERNELS, EmbeddingKernel, LinearKernel, argmax, is_implemented, rms_norm
from cupola.targets.testing.experts import CHOICES, ExpertKernel
from tests.passes.harness import apply

GPU = get_target("cuda:sm_80")
S = SMOLLM2
WIDTH = S.heads * S.head_dim


def call_of(case: KernelCase) -> relax.Call:
    sizes = {name: tirx.Var(name, "int64") for i in case.inputs for name in i.shape if isinstance(name, str)}
    shapes = [tuple(sizes[size] if isinstance(size, str) else size for size in i.shape) for i in case.inputs]
    tensors = {i.name: relax.Var(i.name, relax.TensorType(shape, i.dtype)) for i, shape in zip(case.inputs, shapes, strict=True)}
    return relax.BlockBuilder().normalize(case.emit(tensors))


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (LinearKernel("w4"), KernelCost(operations_per_row=2 * S.ffn * S.hidden)),
        (LinearKernel("bf16", gated=True, activation="silu"), KernelCost(operations_per_row=4 * S.ffn * S.hidden)),
        (AttentionKernel("f16"), KernelCost(operations_per_pair=4 * WIDTH)),
        (AttentionKernel("int8", joined=True, window=20), KernelCost(operations_per_pair=4 * WIDTH, window=20)),
        (EmbeddingKernel("w4m"), KernelCost(gathered_bytes_per_row=S.hidden // 2 + 4 * S.hidden // 32, num_gathered=3)),
        (EmbeddingKernel("w8"), KernelCost(gathered_bytes_per_row=S.hidden + 2 * S.hidden // 32, num_gathered=2)),
        (EmbeddingKernel("bf16"), KernelCost(gathered_bytes_per_row=2 * S.hidden, num_gathered=1)),
        (
            ExpertKernel("w4", gated=True, quantize_x=32),
            KernelCost(
                operations_per_row=CHOICES * 4 * S.ffn * S.hidden, num_gathered=1,
                gathered_bytes_per_row=CHOICES * 2 * S.ffn * (S.hidden // 2 + 2 * S.hidden // 32),
            ),
        ),
        (
            ExpertKernel("bf16", is_shared=False),
            KernelCost(
                operations_per_row=CHOICES * 2 * S.ffn * S.hidden, gathered_bytes_per_row=CHOICES * 2 * S.ffn * S.hidden, num_gathered=1
            ),
        ),
        (argmax, KernelCost(gathered_bytes_per_row=256, num_gathered=1)),
        (rms_norm, None),
    ],
)  # fmt: skip
def test_the_cost_of_an_operation(kernel, expected) -> None:
    assert cost_of(call_of(kernel(S, GPU))) == expected


def test_a_kernel_says_what_it_multiplies_in_and_the_operation_how_much() -> None:
    case = LinearKernel("f32")(S, GPU)

    def in_int8(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
        lowered = next(r for rule in GPU.kernels if (r := rule(call, builder)) is not None)
        builder.update_func(lowered.args[0], with_cost(builder.get()[lowered.args[0]], KernelCost("int8")))
        return lowered

    builder = relax.BlockBuilder()
    x, w = relax.Var("x", relax.TensorType((tirx.Var("n", "int64"), S.hidden))), relax.Var("w", relax.TensorType((S.ffn, S.hidden)))
    with builder.function("forward", [x, w]):
        with builder.dataflow():
            result = builder.emit_output(case.emit({"x": x, "weight": w}))
        builder.emit_func_output(result)
    [spec] = list_kernels(apply(lower_ops(Target(GPU.spec, GPU.tvm, kernels=(in_int8,))), builder.get()["forward"]))
    assert spec.cost == KernelCost("int8", operations_per_row=2 * S.ffn * S.hidden)


@pytest.mark.by_turns
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if is_implemented(kernel, GPU)], ids=lambda k: k(S, GPU).name)
def test_launches_are_those_that_the_host_makes(kernel) -> None:
    mod = lower_case(kernel(S, GPU), GPU)
    kernels = tvm.IRModule({gv: f for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)})
    launches = split(kernels, GPU.tvm).launches
    for spec in list_kernels(kernels):
        sizes = dict.fromkeys(size_names(kernels[spec.name]).values(), 6)
        made = [[evaluate(extent, {f"a{i}": 6 for i in range(40)}) for extent in launch.extents[:3]] for launch in launches[spec.name]]
        assert [evaluate(count, sizes) for count in spec.launches] == [a * b * c for a, b, c in made]
        assert spec.launches


def test_an_empty_launch_is_an_expression_that_is_zero() -> None:
    def body() -> None:
        n, b = T.int64(), T.int64()
        x, y = argument("x", (n,), "float32"), argument("y", (b,), "float32")
        with blocks(n - b, 3, threads=WARP) as (i, _, lane):
            T.buffer_store(x, T.float32(1), [i + lane])
        with blocks(b, threads=WARP) as (i, lane):
            T.buffer_store(y, T.float32(1), [i + lane])

    two = prim_func(body)
    [spec] = list_kernels(tvm.IRModule({"two": two}))
    first, second = spec.launches
    names = size_names(two).values()
    assert [evaluate(first, dict(zip(names, (n, 4), strict=True))) for n in (4, 6)] == [0, 6]
    assert evaluate(second, dict.fromkeys(names, 4)) == 4


def test_kernels_that_no_rule_wrote_launch_too() -> None:
    x, builder = relax.Var("x", relax.TensorType((tirx.Var("n", "int64"), 64))), relax.BlockBuilder()
    with builder.function("forward", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.sin(x))
        builder.emit_func_output(result)
    plain = relax.transform.LegalizeOps()(builder.get())
    assert [spec.launches for spec in list_kernels(plain)] == [()]  # as on a CPU
    [scheduled] = list_kernels(schedule(GPU.tvm)(plain))
    assert [evaluate(blocks, {"n_0": 100}) for blocks in scheduled.launches] == [-(-100 * 64 // 1024)]
