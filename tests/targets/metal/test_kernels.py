"""The text of Metal's kernels: those of many rows multiply matrices, and read weights and pages 16 bytes at a time."""

from __future__ import annotations

import re

import pytest
import tvm

from cupola.targets.gpu.lowering import split
from cupola.targets.gpu.metal import MAX_SHARED_BYTES, metal_source
from cupola.targets.gpu.vectors import load_words
from cupola.targets.registry import get_target
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, AttentionKernel, LinearKernel, is_implemented

TARGET = get_target("metal")
MULTIPLYING = [
    kernel for kernel in (*KERNELS, *VARIANTS) if isinstance(kernel, LinearKernel | AttentionKernel) and is_implemented(kernel, TARGET)
]
SIZES = {"float": 4, "half": 2, "ushort": 2, "int": 4, "uint": 4, "long": 8, "char": 1}
SHARED = re.compile(r"^\s*alignas\(16\) threadgroup (\w+) \w+\[(\d+)\];$", re.MULTILINE)
READ = re.compile(r"(.{18})\b(weight|keys|values)(?:_words)?_ptr [+]")


def kernels_of(kernel: LinearKernel | AttentionKernel) -> list[str]:
    """The text of each of its launches, in order."""
    functions = lower_case(kernel(SMOLLM2, TARGET), TARGET).functions_items()
    mod = tvm.IRModule({gv.name_hint: f for gv, f in functions if isinstance(f, tvm.tirx.PrimFunc)})
    return metal_source(split(load_words()(mod), TARGET.tvm), TARGET.tvm).split("\nkernel void ")[1:]


@pytest.mark.by_turns
@pytest.mark.parametrize("kernel", MULTIPLYING, ids=lambda kernel: kernel(SMOLLM2, TARGET).name)
def test_many_rows_multiply_matrices_of_what_is_read_16_bytes_at_a_time(kernel: LinearKernel | AttentionKernel) -> None:
    matrices = [text for text in kernels_of(kernel) if "simdgroup_multiply_accumulate(" in text]
    assert len(matrices) == (2 if isinstance(kernel, LinearKernel) else 1)
    for text in matrices:
        reads = READ.findall(text)
        assert {name for _, name in reads} == ({"weight"} if isinstance(kernel, LinearKernel) else {"keys", "values"})
        assert {before.rpartition("(")[0].rpartition("*(")[2] for before, _ in reads} <= {"device uint4*)", "device float4*)"}
        assert not re.search(r"\b(weight|keys|values)(_words)?_ptr\[", text)
        shared = SHARED.findall(text)
        assert text.count("threadgroup float ") == len(shared)
        assert 0 < sum(SIZES[dtype] * int(count) for dtype, count in shared) <= MAX_SHARED_BYTES
