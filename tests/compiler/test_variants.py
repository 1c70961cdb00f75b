"""An artifact with a library for each of several instruction sets, over one set of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tvm import IRModule, relax

import cupola
from cupola.compiler.cli.app import run
from cupola.compiler.variants import check_agreement, check_scheme, choose_kv_dtype, join_kernels, lay_out_state
from cupola.passes.schemes import scheme_of
from cupola.runtime.artifact.state import KVGroup, KVSpec
from cupola.runtime.artifact.tensors import KernelCost, KernelSpec
from cupola.runtime.errors import OptionError, UnsupportedError
from cupola.targets.base import Abilities, Target
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.registry import get_target, get_targets
from tests.checkpoints import save_tiny
from tests.passes.harness import module

TWO = [isa.name for isa in ISAS if runs_here(isa)][-2:]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    folder = tmp_path_factory.mktemp("variants")
    target = ",".join(f"cpu:{isa}" for isa in TWO)
    return cupola.compile(save_tiny(folder / "model", "llama"), out=folder / "artifact", target=target, quant="f32")


@pytest.mark.skipif(len(TWO) < 2, reason="this machine runs one instruction set only")
def test_each_library_runs_on_the_same_weights(artifact: cupola.Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert [(library.file, library.target.device) for library in artifact.manifest.libraries] == [
        ("lib.so", TWO[0]), (f"lib.{TWO[1]}.so", TWO[1])]  # fmt: skip
    tokens = [1, 2, 3, 4, 5]
    best, first, second = (cupola.LLM(artifact, device=isa).logits(tokens) for isa in (None, *TWO))
    assert (best == first).all()
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert (first != second).any()  # sums of other lengths: it was another library
    assert run(["inspect", str(artifact.path)]) == 0
    shown = capsys.readouterr().out
    assert all(f"cpu:{isa}" in shown for isa in TWO)
    with pytest.raises(OptionError, match="device: is 'z80', and the artifact has"):
        cupola.LLM(artifact, device="z80")


def weights_only(scale: float) -> IRModule:
    x, w = relax.Var("x", relax.TensorType([4], "float32")), relax.Var("w", relax.TensorType([4], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("forward", [x, w], attrs={"num_input": 1}):
        with builder.dataflow():
            packed = builder.emit(relax.op.multiply(w, relax.const(scale, "float32")))
            result = builder.emit_output(relax.op.add(x, packed))
        builder.emit_func_output(result)
    return module(builder.get()["forward"])


def test_targets_that_lay_weights_out_differently_are_refused() -> None:
    targets = get_targets("cpu:avx2,cpu:generic")
    check_agreement([weights_only(2), weights_only(2)], targets)
    with pytest.raises(OptionError, match="target: cpu:avx2 and cpu:generic lay weights out differently"):
        check_agreement([weights_only(2), weights_only(3)], targets)


def test_targets_that_give_different_outputs_are_refused() -> None:
    x = relax.Var("x", relax.TensorType([4], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("forward", [x], attrs={"num_input": 1}):
        with builder.dataflow():
            result = builder.emit_output(relax.op.add(x, x))
        builder.emit_func_output(relax.Tuple([result, result]))
    targets = get_targets("cpu:avx2,cpu:generic")
    with pytest.raises(OptionError, match="target: cpu:avx2 and cpu:generic give different outputs"):
        check_agreement([weights_only(2), module(builder.get()["forward"])], targets)


def test_a_target_that_cannot_store_k_and_v_so_is_named() -> None:
    target = replace(get_target("cpu:generic"), abilities=Abilities(kv_dtypes=("float32", "int8")))
    kv = KVSpec((KVGroup((0, 1), 2, 16, 16),), "float16", 16)
    with pytest.raises(UnsupportedError, match=r"target cpu:generic: can't store K and V as float16 \(it can as float32, int8\)"):
        lay_out_state(kv, [target])


def test_what_a_target_cannot_store_is_chosen_only_if_it_is_asked_for() -> None:
    targets = [
        replace(get_target("cpu:generic"), abilities=Abilities(kv_dtypes=dtypes)) for dtypes in (("float32", "float16"), ("bfloat16",))
    ]
    scheme = scheme_of("bf16")
    assert scheme.kv_dtype == "bf16"
    assert choose_kv_dtype(None, scheme, targets[1:]) == ("bfloat16", ())
    assert choose_kv_dtype("bf16", scheme, targets) == ("bfloat16", ())  # which is refused then
    note = "K and V are stored as float16: cpu:generic can't store them as bfloat16"
    assert choose_kv_dtype(None, scheme, targets) == ("float16", (note,))


def test_a_target_without_kernels_for_all_formats_of_files_is_named() -> None:
    target = get_target("cpu:generic")
    check_scheme(scheme_of("keep-a16"), [target])
    without = replace(target, abilities=Abilities(keeps_blocks=False))
    with pytest.raises(UnsupportedError, match=r"quant: is keep-a16, and cpu:generic has no kernels for all formats of GGUF files"):
        check_scheme(scheme_of("keep-a16"), [without])


def test_kernels_are_listed_once() -> None:
    a, b = KernelSpec("a", KernelCost("int8")), KernelSpec("b")
    assert join_kernels([(b,), (a, b)]) == (a, b)


def test_targets_that_lay_state_out_differently_are_refused() -> None:
    kv = KVSpec((KVGroup((0, 1), 2, 16, 16),), "float32", 16)
    target = get_target("cpu:generic")
    plain = Target(replace(target.spec, name="plain"), target.tvm)
    assert [pool.name for pool in lay_out_state(kv, [plain, plain]).groups[0].pools] == ["keys", "values"]
    with pytest.raises(OptionError, match="target: cpu:generic and plain lay the K/V cache out differently"):
        lay_out_state(kv, [target, plain])
