"""The memory that K/V get: on the host what one says, on a GPU what weights and a step leave of a share of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import cupola
from cupola.compiler.cli.app import run
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.read import read_plan
from cupola.runtime.device.memory import CHECKPOINTS, choose_kv_memory, choose_num_blocks
from cupola.runtime.errors import OptionError
from tests.runtime.fakes import make_kv
from tests.runtime.tiny_artifact import BLOCK, CONTEXT, VOCAB, make_artifact

MIB = 1 << 20


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("tiny") / "artifact")


def gpu(total: int, free: int, largest: int = 1 << 60) -> Any:
    return SimpleNamespace(shares_memory=False, total_memory=lambda: total, memory_budget=lambda: free, largest_tensor=lambda: largest)


def kv_memory(
    artifact: Artifact, device: Any, kv: int | str | None = None, share: float | None = None, seqs: int = 2, tokens: int = 8
) -> Any:
    manifest = artifact.manifest
    plan = read_plan(artifact.path / manifest.libraries[0].plan, manifest.function("forward"))
    return choose_kv_memory(manifest, plan, device, kv, share, seqs, tokens)


def beside(artifact: Artifact, seqs: int, tokens: int) -> int:
    """By hand: the weight; tokens, positions and slots; starts, lengths, rows and tables; results; and the plan's workspace."""
    manifest = artifact.manifest
    plan = read_plan(artifact.path / manifest.libraries[0].plan, manifest.function("forward"))
    _, workspace = plan.layout({name: {"n": tokens, "b": seqs, "r": seqs}.get(name, CONTEXT // BLOCK) for name in plan.dims})
    inputs = 4 * (3 * tokens + (seqs + 1) + seqs + seqs + seqs * CONTEXT // BLOCK)
    results = [spec for spec in manifest.function("forward").outputs if spec.name in {i.name for i in manifest.function("forward").inputs}]
    shapes = [[seqs if isinstance(size, str) else size for size in spec.shape] for spec in results]
    outputs = sum(4 * shape[0] * shape[1] for shape in shapes)
    return 4 * VOCAB * VOCAB + inputs + outputs + workspace


@pytest.mark.parametrize(("seqs", "tokens"), [(2, 8), (3, 64)])
def test_a_gpu_gives_what_is_left_of_its_share(artifact: Artifact, seqs: int, tokens: int) -> None:
    taken = beside(artifact, seqs, tokens)
    assert kv_memory(artifact, gpu(100 * MIB, 100 * MIB), share=0.5, seqs=seqs, tokens=tokens) == 50 * MIB - taken
    assert kv_memory(artifact, gpu(100 * MIB, 95 * MIB), seqs=seqs, tokens=tokens) == 90 * MIB - taken  # the default
    assert kv_memory(artifact, gpu(100 * MIB, 30 * MIB), seqs=seqs, tokens=tokens) == 30 * MIB - taken  # or what is free
    assert kv_memory(artifact, gpu(100 * MIB, 95 * MIB), "1MB", seqs=seqs, tokens=tokens) == "1MB"


def test_what_a_gpu_cannot_give_is_refused_by_name(artifact: Artifact) -> None:
    for share, kv, message in (
        (0.5, None, "gpu_memory_utilization: is 0.5, 50 MiB, and of 100 MiB 40 are free (give less, or end what takes the rest)"),
        (0.001, None, "gpu_memory_utilization: leaves -1 MiB for K/V beside the weights and a step of 8 tokens"),
        (0.3, "35MB", "kv_memory: is 33 MiB, and gpu_memory_utilization leaves 29"),
        (0.3, "much", "kv_memory: is 'much'"),
        (1.5, None, "gpu_memory_utilization: is 1.5, not above 0 and up to 1 (give one in that range; 0.9 is the default)"),
    ):
        with pytest.raises(OptionError) as refused:
            kv_memory(artifact, gpu(100 * MIB, 40 * MIB), kv, share)
        assert message in str(refused.value)


def test_the_hosts_memory_is_not_shared_out(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    host = SimpleNamespace(shares_memory=True)
    assert kv_memory(artifact, host) == "1GB" and kv_memory(artifact, host, "2MB") == "2MB"
    with pytest.raises(
        OptionError, match=r"gpu_memory_utilization: is 0.5, and this target runs in the host's memory \(say with kv_memory"
    ):
        cupola.LLM(artifact, gpu_memory_utilization=0.5)
    assert run(["run", str(artifact.path), "-p", "a", "--raw", "--gpu-memory-utilization", "0.5"]) == 2
    assert "gpu_memory_utilization: is 0.5" in capsys.readouterr().err
    assert run(["bench", str(artifact.path), "-p", "8", "-n", "0", "--gpu-memory-utilization", "2"]) == 2
    assert "gpu_memory_utilization: is 2.0, not above 0 and up to 1" in capsys.readouterr().err


def test_serving_refuses_a_share_before_a_process_starts(artifact: Artifact) -> None:
    with pytest.raises(OptionError, match="gpu_memory_utilization: is 0, not above 0"):
        cupola.serve(artifact.path, gpu_memory_utilization=0)


def test_keys_and_values_are_no_larger_than_one_tensor_may_be(artifact: Artifact) -> None:
    assert kv_memory(artifact, gpu(1000 * MIB, 1000 * MIB, 128 * MIB)) == 128 * MIB


def test_recurrent_state_gets_two_slots_first_and_checkpoints_of_what_is_left() -> None:
    kv = make_kv((0,), True)
    block, slot = (kv.group_bytes_per_block(group) for group in range(2))
    most = kv.most_blocks(48, 8)
    assert most == (12, 2)

    def found(num_bytes: int) -> tuple[int, ...]:
        return choose_num_blocks(kv, num_bytes, most, 4)

    assert found(block + slot) == (1, 1) and found(7 * block + 2 * slot) == (7, 2)  # one sequence comes first
    assert found(12 * block + 5 * slot) == (12, 5)
    assert found(10**6) == (4 * 12, 4 * (2 + CHECKPOINTS))
