"""The contest of a large file: what it makes of a worker's times, and shares of what a machine can do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.large_models.speed import PEER, Contest, LlamaCpp, Pair
from cupola import Artifact, SpeedTest
from cupola.runtime.measure.profile import Roofline
from tests.conftest import Compiled

FAKE = Path(__file__).with_name("fake_worker.py")
TESTS = Pair(SpeedTest("pp", 32), SpeedTest("tg", 4))
LAYER_WEIGHTS = 30 * (576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536)  # of SmolLM2-135M


@pytest.fixture
def peer():
    worker = LlamaCpp([sys.executable, str(FAKE), "100"], "file")
    yield worker
    worker.close()


def test_a_peers_rates_are_those_of_its_times(peer: LlamaCpp) -> None:
    assert peer.tokens_per_second(TESTS.prompt) == pytest.approx(100)
    assert peer.tokens_per_second(TESTS.decode) == pytest.approx(100)


def test_the_table_has_medians_beside_the_peers_and_the_limits(smollm2_w4a8: Compiled, peer: LlamaCpp) -> None:
    artifact = Artifact.open(smollm2_w4a8.path)
    contest = Contest(artifact, peer, TESTS)
    for test in (TESTS.prompt, TESTS.decode):
        contest.round(test)
    assert all(len(rates) == 1 and rates[0] > 0 for rates in contest.rates.values())
    [device] = contest.benchmarks
    weight_bytes = sum(file.num_bytes for file in artifact.manifest.files if file.name.endswith(".safetensors"))
    contest.rooflines[device] = Roofline(2, 1000 * weight_bytes, {"int8": 1e11})
    contest.rates = {f"{PEER} tg4": [200, 100, 1], f"{PEER} pp32": [100], f"{device} tg4": [9, 150, 999], f"{device} pp32": [250, 250, 1]}
    head, _, other, own = (line.strip("| ").split(" | ") for line in contest.table().splitlines())
    assert head[1] == "tg4" and head[4] == "pp32" and other[0] == PEER
    assert own[0] == device and own[1:3] == ["150.00", "1.50"] and own[4:6] == ["250.0", "2.50"]
    assert float(own[3].rstrip("%")) == pytest.approx(15, abs=1.5)  # a step reads all weights and little else
    least = 100 * 250 * 2 * LAYER_WEIGHTS / 1e11
    assert 0.9 * least < float(own[6].rstrip("%")) < 1.3 * least
