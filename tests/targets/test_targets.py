"""The registry, and what can be said of a kernel without running it."""

from __future__ import annotations

import re

import pytest
import tvm
from tvm import relax

from cupola.runtime.errors import OptionError
from cupola.runtime.machine import missing_features
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.ops import GatedLinear, Linear, PagedAttention, Rotary
from cupola.targets.registry import get_target, get_targets, list_targets, target_names
from tests.targets.harness import Input, module, size

ARM = [isa.name for isa in ISAS if isa.architecture == "aarch64"]


def test_every_target_is_listed_and_found():
    assert [name for name, _, _ in list_targets()] == list(target_names())
    for name in target_names()[1:]:
        target = get_target(name)
        assert target.spec.name == name
        assert target.spec.isa == name.removeprefix("cpu:")


def test_cpu_is_the_best_that_runs_here():
    best = next(isa for isa in ISAS if runs_here(isa))
    spec = get_target("cpu").spec
    assert (spec.name, spec.features) == (f"cpu:{best.name}", best.features)
    assert missing_features(spec.features) == []


def test_several_targets_with_commas_between_them():
    assert [target.spec.isa for target in get_targets("cpu:avx2,cpu:generic")] == ["avx2", "generic"]
    with pytest.raises(OptionError, match="has one twice"):
        get_targets("cpu:avx2,cpu:avx2")
    with pytest.raises(OptionError, match="'' is not a target"):
        get_targets("cpu:avx2,")


def test_an_unknown_target_is_refused_with_the_names():
    with pytest.raises(OptionError, match=r"'cpu:z80' is not a target .*cpu:avx512, cpu:avx2"):
        get_target("cpu:z80")


def compiled(name: str, mod: tvm.IRModule) -> tvm.runtime.Module:
    """The PrimFuncs of a module that a rule wrote, as machine code."""
    kernels = {gv.name_hint: f for gv, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    kernels = {key: f.with_attr("global_symbol", key) for key, f in kernels.items()}
    return tvm.tirx.build(tvm.IRModule(kernels), target=get_target(name).tvm, pipeline=get_target(name).lowering)


def linear(name, dtype="float32"):
    m = size("m")
    inputs = [Input("x", (m, 576)), Input("weight", (1536, 576), dtype)]
    return module(get_target(name), inputs, lambda x, w: Linear(x, w, None, None, "").emit(relax.TensorType((m, 1536), "float32")))


def attention(name, n, heads, groups, dim):
    blocks = size("blocks")
    pages = [Input("k_pages", (1, blocks, groups, dim, 16)), Input("v_pages", (1, blocks, groups, 16, dim))]
    integers = [("slots", (n,)), ("starts", (size("b1"),)), ("lens", (size("b"),)), ("tables", (size("b"), size("w")))]
    inputs = [Input("q", (n, heads * dim)), *(Input(k, (n, groups * dim)) for k in "kv"), *pages]
    inputs += [Input(key, shape, "int32") for key, shape in integers]
    result = relax.TensorType((n, heads * dim), "float32")

    def make(q, k, v, k_pages, v_pages, *integers):
        starts, options = (0, 0, 0), (0, 0.25, 0, 0.0)
        op = PagedAttention(q, k, v, None, None, k_pages, v_pages, None, None, *integers, None, None, *starts, *options)
        return op.emit(result)

    return module(get_target(name), inputs, make)


def inner_loops(assembly: str, num_multiply_adds: int) -> list[str]:
    """The loops with that many multiply-adds on 512-bit registers."""
    blocks = (block.partition("\n\tj")[0] for block in re.split(r"^\.LBB\w+:", assembly, flags=re.MULTILINE))
    return [block for block in blocks if len(re.findall(r"vfmadd\w+\t.*%zmm", block)) == num_multiply_adds]


def spills(loop: str) -> list[str]:
    return re.findall(r".*\(%r[sb]p.*", loop)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_full_tile_of_a_linear_stays_in_registers(dtype):
    loops = inner_loops(compiled("cpu:avx512", linear("cpu:avx512", dtype)).inspect_source("asm"), 24)  # 12 rows × 2 vectors
    assert [spills(loop) for loop in loops] == [[]]


def test_the_prefill_tile_of_attention_stays_in_registers():
    assembly = compiled("cpu:avx512", attention("cpu:avx512", size("n"), 9, 3, 64)).inspect_source("asm")
    loops = inner_loops(assembly, 24)  # 12 rows × 2 vectors
    assert len(loops) >= 3 and not any(spills(loop) for loop in loops)  # scores, and values in two halves


def every_kernel(name, n):
    """A module for each kernel, with its smallest sizes."""
    target, f32 = get_target(name), "float32"

    def result(*shape):
        return relax.TensorType(shape, f32)

    x, w = Input("x", (n, 16)), Input("w", (64, 16), "float16")
    yield module(target, [x, w], lambda x, w: Linear(x, w, None, None, "silu").emit(result(n, 64)))
    yield module(target, [x, w], lambda x, w: GatedLinear(x, w, None, "gelu").emit(result(n, 32)))
    yield module(target, [x, Input("w", (16,))], lambda x, w: relax.op.nn.rms_norm(x, w, [-1], 1e-5))
    yield module(target, [w, Input("t", (n,), "int32")], lambda w, t: relax.op.take(w, t, axis=0))
    heads, angles = Input("x", (n, 2, 16)), [Input(angle, (n, 16)) for angle in ("cos", "sin")]
    yield module(target, [heads, *angles], lambda x, c, s: Rotary(x, c, s).emit(result(n, 2, 16)))
    yield attention(name, n, 2, 1, 16)


@pytest.mark.parametrize("name", ARM)
def test_arm_compiles(name, tmp_path):
    for mod in every_kernel(f"cpu:{name}", size("n")):
        library = compiled(f"cpu:{name}", mod)
        library.write_to_file(str(tmp_path / "kernel.o"), "o")
        assert (tmp_path / "kernel.o").read_bytes()[18:20] == b"\xb7\x00"  # ELF: AArch64
