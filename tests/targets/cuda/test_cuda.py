"""Libraries for CUDA: weights are read by wide loads, and nothing of NVIDIA's is needed to open one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from tvm import tirx

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import plan_of_kernels
from cupola.runtime.errors import UnsupportedError
from cupola.targets.cuda import build
from cupola.targets.cuda.target import ARCHITECTURES
from cupola.targets.gpu.code import cuda_source
from cupola.targets.gpu.lowering import split
from cupola.targets.registry import get_target
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import LinearKernel, rms_norm
from tests.targets.harness import C_LIBRARY, needed_libraries


@pytest.mark.by_turns
@pytest.mark.parametrize("weight", ["f16", "bf16", "w8", "w4", "w4m", "w4g64", "w4g128m"])
def test_threads_read_16_bytes_of_a_weight_at_once(weight: str, tmp_path: Path) -> None:
    target = get_target("cuda:sm_80")
    mod = lower_case(LinearKernel(weight)(replace(SMOLLM2, hidden=640), target), target)
    code = split(tvm.IRModule({gv: f for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}), target.tvm)
    source = cuda_source(code, target.tvm)
    reads = re.findall(r"(?:\*\((\w+)\*\)\()?(&\()?weight_ptr( \+|\[)", source)
    assert ("int4", "", " +") in reads
    assert all(read == ("int4", "", " +") or read[1:] == ("&(", "[") for read in reads)  # the addresses are those of copy_16
    assert source.count("copy_16((&") >= sum(read[1] != "" for read in reads) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_library_needs_the_c_library_alone(architecture: str, tmp_path: Path) -> None:
    target = get_target(f"cuda:{architecture}")
    planned = plan_memory(lower_case(rms_norm(SMOLLM2, target), target))
    build_library(planned, plan_of_kernels(planned), target, tmp_path / "lib.so")
    assert needed_libraries(tmp_path / "lib.so") <= C_LIBRARY


def test_without_a_compiler_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"target cuda: needs NVIDIA's compiler \(`pip install 'cupola\[cuda\]'`"):
        build.find_nvcc()
