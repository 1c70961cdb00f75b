"""The order in which the workers of pytest-xdist get tests."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# Tests that share nothing and mostly wait for a compiler: whichever worker is free takes the next one.
DEALT_OUT = (
    "tests/e2e/test_checkpoints.py", "tests/e2e/test_experts.py", "tests/e2e/test_families.py", "tests/e2e/test_imports.py",
    "tests/e2e/test_quality.py", "tests/e2e/test_schemes.py", "tests/e2e/test_toy_target.py", "tests/passes/schemes/",
    "tests/targets/cpu/test_attention.py", "tests/targets/cpu/test_ledger.py", "tests/targets/cuda/", "tests/targets/gpu/",
    "tests/targets/native/", "tests/targets/rocm/", "tests/targets/softgpu/", "tests/targets/webgpu/test_kernels.py",
)  # fmt: skip


class Scheduling(LoadFileScheduling):
    """The tests of a file stay together, as they share servers and artifacts; files of many tests go first, and tests that are dealt
    out one by one last, so that all workers end at about the same time."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(DEALT_OUT) else super()._split_scope(nodeid)
