"""The page on what an 8 B model can reach: what it says is what the plans say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cupola.runtime.measure.machines import MACHINES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline", ROOT / "benchmarks" / "roofline" / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = module  # which dataclasses look for
    spec.loader.exec_module(module)
    return module


@pytest.mark.by_turns
def test_the_page_says_what_the_plans_say(roofline: ModuleType) -> None:
    page = (ROOT / "docs" / "roofline.md").read_text(encoding="utf-8")
    [h100, h200] = roofline.cases(roofline.CONFIG, [MACHINES["h100"], MACHINES["h200"]], ["w4a16"])
    for case in (h100, h200):
        for row in (roofline._decode_row(case), roofline._row(case)):
            assert row in page, f"kernels changed; `make roofline` and commit it: {row}"
    step = h100.decode[1]
    # Weights of 4 bits with a scale of 16 bits in groups of 32, the vocabulary's of 8; and the K/V of 1,025 tokens.
    layers = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336) * (4 + 16 / 32) / 8
    vocabulary, state = 128256 * 4096 * (8 + 16 / 32) / 8, 32 * 2 * 1024 * 2 * 1025
    assert layers + vocabulary + state < step.cost.num_bytes < 1.01 * (layers + vocabulary + state)
    assert step.memory_seconds(h100.machine) / step.seconds(h100.machine) > 0.85


def test_machines_without_a_target_are_named(roofline: ModuleType) -> None:
    page = roofline.as_markdown([], [MACHINES["m4-max"]])
    assert "There is no target yet for m4-max (`metal`)." in page
