"""Attention of CUDA's, Metal's and AMD's kernels over long contexts: against float64, in several orders of blocks and threads, and alone as
in company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.gpu.attention.chunks import CHUNK, MOST_SPLIT
from cupola.targets.registry import get_target
from cupola.targets.testing.attention import AttentionKernel
from cupola.targets.testing.case import Array, Arrays, Sizes
from tests.targets.harness import same_bits

TARGET = get_target("softgpu")
TARGETS = ("softgpu", "softmetal")
SIZES = Sizes(hidden=64, ffn=64, heads=6, kv_heads=2, head_dim=48, vocabulary=64, block=16)
MANY_HEADS = replace(SIZES, heads=22, kv_heads=1, head_dim=80, block=7)  # which blocks share out
KERNELS = [
    (AttentionKernel("f16", joined=True), SIZES),
    (AttentionKernel("bf16", joined=True, dtype="bf16"), MANY_HEADS),
    (AttentionKernel("f32", joined=True, interleaved=True), replace(SIZES, head_dim=256, kv_heads=3)),
    (AttentionKernel("int8", softcap=4.0), SIZES),
    (AttentionKernel("int8", joined=True, window=300), replace(SIZES, head_dim=64, heads=12)),
    (AttentionKernel("f16", window=20, slopes=True, sinks=True), SIZES),
    (AttentionKernel("fp8", joined=True), SIZES),
]
AMD = [
    ("softrocm:gfx942", KERNELS[1]), ("softrocm:gfx1100", KERNELS[3]), ("softrocm:gfx942", KERNELS[4]), ("softrocm:gfx1100", KERNELS[5]),
    ("softrocm:gfx942", KERNELS[6]),
    ("softrocm:gfx1100", (AttentionKernel("f16", joined=True), replace(SIZES, head_dim=256, kv_heads=3))),  # whose tiles come late
]  # fmt: skip
ROWS = ("q", "k", "v", "qkv", "cos", "sin", "slots")


def name(value: object) -> str | None:
    return value(SIZES, TARGET).name if isinstance(value, AttentionKernel) else None


def chosen(arrays: Arrays, sequences: Sequence[int]) -> tuple[Arrays, Array]:
    """The step of some of the sequences alone, and which rows are theirs."""
    starts = arrays["query_starts"]
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in sequences])
    counts = [int(starts[i + 1] - starts[i]) for i in sequences]
    part = {key: array[rows] if key in ROWS else array for key, array in arrays.items()}
    part |= {key: arrays[key][list(sequences)] for key in ("context_lens", "block_tables")}
    return part | {"query_starts": np.cumsum([0, *counts]).astype("int32")}, rows


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("gpu", "kernel", "sizes"), [*((gpu, *each) for each in KERNELS for gpu in TARGETS), *((gpu, *each) for gpu, each in AMD)], ids=name
)
def test_long_contexts(gpu: str, kernel: AttentionKernel, sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    target = get_target(gpu)
    run = compile_case(kernel(sizes, target), target)
    for one_each, count in ((True, 4), (False, 9), (False, 75)):
        case = replace(kernel, context=4 * CHUNK, one_each=one_each)(sizes, target)
        arrays = case.draw(np.random.default_rng(3), count)
        assert arrays["context_lens"].max() > 2 * CHUNK
        whole = run(arrays)
        assert case.expected(arrays).error(whole) <= 1
        for i, seed in enumerate(("1", "7", "0", "1")[: len(arrays["context_lens"])]):
            monkeypatch.setenv("SOFTGPU_SEED", seed)
            part, rows = chosen(arrays, [i])
            assert same_bits(run(arrays), whole)
            assert same_bits(run(part), whole[rows])


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("gpu", "window"), [("softgpu", 0), ("softgpu", 40), ("softmetal", 40), ("softrocm:gfx942", 40), ("softrocm:gfx1100", 0)]
)
def test_a_prompt_may_be_cut_anywhere(gpu: str, window: int) -> None:
    target = get_target(gpu)
    case = AttentionKernel("f16", window=window)(SIZES, target)
    run, arrays = compile_case(case, target), case.draw(np.random.default_rng(5), 90)
    part, _ = chosen(arrays, [int(np.argmax(np.diff(arrays["query_starts"])))])
    count, whole = int(part["query_starts"][1]), run(part)
    assert count > 40
    for cut in (1, 17, count - 2):
        rest = {key: array[cut:] if key in ROWS else array for key, array in part.items()} | {
            "query_starts": part["query_starts"] - [0, cut]
        }
        rest["query_starts"] = rest["query_starts"].astype("int32")
        for pool, new in (("keys", "k"), ("values", "v")):
            rest[pool] = part[pool].copy()
            place = part["slots"][:cut] // SIZES.block, part["slots"][:cut] % SIZES.block
            rest[pool][1][place] = part[new][:cut].reshape(cut, SIZES.kv_heads, SIZES.head_dim)
        assert same_bits(run(rest), whole[cut:])


def test_a_token_beside_a_prompt() -> None:
    """Then keys are appended by a launch before, and not by who attends."""
    kernel = AttentionKernel("f16", joined=True, context=3 * CHUNK)
    case = kernel(SIZES, TARGET)
    run, arrays = compile_case(case, TARGET), case.draw(np.random.default_rng(2), 9)
    counts = np.diff(arrays["query_starts"])
    assert {1} < set(counts.tolist())
    whole = run(arrays)
    for i in np.flatnonzero(counts == 1):
        part, rows = chosen(arrays, [int(i)])
        assert same_bits(run(part), whole[rows])


def test_more_sequences_than_chunks_are_shared_out_for() -> None:
    sizes = replace(SIZES, heads=128, kv_heads=64, head_dim=16)
    kernel = AttentionKernel("f16", joined=True, context=3 * CHUNK, one_each=True)
    case = kernel(sizes, TARGET)
    run, arrays = compile_case(case, TARGET), case.draw(np.random.default_rng(0), MOST_SPLIT // 64 + 1)
    whole = run(arrays)
    assert case.expected(arrays).error(whole) <= 1
    part, rows = chosen(arrays, range(len(whole) - 1))
    assert same_bits(run(part), whole[rows])
