"""The order in which the workers of pytest-xdist get tests."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

# Tests that share nothing and mostly wait for a compiler: whichever worker is free takes the next one.
DEALT_OUT = (
    *(f"tests/e2e/test_{name}.py" for name in ("checkpoints", "experts", "families", "imports", "kept_formats", "quality", "schemes")),
    *(f"tests/e2e/test_{name}.py" for name in ("softrocm", "toy_target")),
    *(f"tests/targets/{name}/test_ledger.py" for name in ("cpu", "cuda", "rocm")),
    *(f"tests/targets/{name}/test_kernels.py" for name in ("softgpu", "webgpu")),
    "tests/passes/schemes/", "tests/targets/gpu/attention/test_attention.py", "tests/targets/gpu/linear/test_layers.py",
    "tests/targets/native/test_sanitizers.py",
)  # fmt: skip


class Scheduling(LoadFileScheduling):
    """The tests of a file stay together, as they share servers and artifacts; files of many tests go first, and tests that are dealt
    out one by one last, so that all workers end at about the same time."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(DEALT_OUT) else super()._split_scope(nodeid)
