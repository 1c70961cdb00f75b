"""The executor: memory for steps of any size, what it refuses, and what becomes of a step that fails."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import LIBRARY, PLAN
from cupola.runtime.artifact.read import read_plan
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.device.executor import SPARE_BYTES, NativeExecutor, _Memory, _Results, load
from cupola.runtime.device.host import HostDevice, HostOutput
from cupola.runtime.device.interface import Batch, SamplingPlan
from cupola.runtime.device.library import Library
from cupola.runtime.environment import num_threads
from cupola.runtime.errors import ArtifactError, EngineError, OptionError
from tests.runtime.tiny_artifact import BLOCK, VOCAB, follow_of, make_artifact, reference_logits

TOKENS = [3, 1, 4, 1, 5, 9]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("tiny") / "artifact")


@pytest.fixture
def executor(artifact: Artifact) -> NativeExecutor:
    return load(artifact, [8])


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def prompt(tokens: list[int], rows: list[int], first_block: int = 2) -> Batch:
    """A prompt in blocks from `first_block` on."""
    table = range(first_block, first_block - -len(tokens) // -BLOCK * -1 + 1)
    positions = np.arange(len(tokens), dtype=np.int32)
    return Batch(
        tokens=ints(*tokens), positions=positions, slots=(positions + first_block * BLOCK,), query_starts=ints(0, len(tokens)),
        context_lens=ints(len(tokens)), block_tables=(ints(*table)[None],), logit_rows=ints(*rows),
    )  # fmt: skip


def run(executor: NativeExecutor, batch: Batch) -> HostOutput:
    return executor.submit(batch, SamplingPlan(rows=tuple(range(len(batch.logit_rows))))).result()


def test_results_have_the_rows_of_the_step_and_large_memory_goes_back() -> None:
    specs = [("logits", "float32", ("r", 1000)), ("maxima", "float32", ("r", 16)), ("argmax", "int32", (8, "r"))]
    results, most = _Results(HostDevice(), [TensorSpec(*spec) for spec in specs], [4, 5, 6]), SPARE_BYTES // 4000
    held = []
    for num_rows in (0, 3, 3, 0, 2, 2 * most, 1, 0):  # a chunk of a prompt wants none
        tensors = results.hold(num_rows)
        output = results.output()
        arrays = output.logits, output.block_maxima, output.tokens
        assert [array.shape for array in arrays] == [(num_rows, 1000), (num_rows, 16), (8, num_rows)]
        assert [str(array.dtype) for array in arrays] == [tensor.dtype for tensor in tensors.values()] == [spec[1] for spec in specs]
        assert list(tensors) == [4, 5, 6]
        for array, tensor in zip(arrays, tensors.values(), strict=True):
            assert num_rows == 0 or array.ctypes.data == tensor.address
        held.append(results._memory[0]._whole.shape[0])
    assert held == [0, 12000, 12000, 12000, 12000, 8000 * most, 4000, 4000]


def test_workspace_grows_and_is_given_back() -> None:
    memory, sizes = _Memory(HostDevice()), []
    for num_bytes in (0, 100, 64, SPARE_BYTES, SPARE_BYTES + 1000, 1000, 999):
        memory.fit(num_bytes)
        assert memory.address % 64 == 0
        sizes.append(memory._whole.shape[0])
    assert sizes == [0, 100, 100, SPARE_BYTES, SPARE_BYTES + 1000, SPARE_BYTES + 1000, 999]


def test_steps_of_changing_sizes(executor: NativeExecutor, artifact: Artifact) -> None:
    weight = follow_of(artifact)
    for length, rows in ((6, [5]), (2, [0, 1]), (6, []), (3, [2]), (6, [0, 3, 5])):
        output = run(executor, prompt(TOKENS[:length], rows))
        expected = reference_logits(weight, TOKENS[:length])[rows]
        np.testing.assert_allclose(output.rows(range(len(rows))), expected, atol=1e-4)
        assert output.argmax().tolist() == [expected.argmax(axis=1).tolist()]
        for i, row in enumerate(rows):
            assert output.maxima(i)[0] == output.row(i)[:64].max(), row
        assert output.rows([]).shape == (0, VOCAB)


def test_a_batch_that_does_not_fit_together_is_refused(executor: NativeExecutor) -> None:
    good = prompt(TOKENS, [5])
    for changed, problem in [
        ({"positions": good.positions[:4]}, r"'positions' is int32 \[4\] where int32 \['n'\] is taken"),
        ({"query_starts": ints(0, 3, 6)}, r"'query_starts' is int32 \[3\]"),
        ({"block_tables": (good.block_tables[0][0],)}, r"'block_tables\.0' is int32 \[2\]"),
        ({"tokens": good.tokens.astype(np.int64)}, r"int64 \(6,\) was given for int32 \(6,\)"),
    ]:
        with pytest.raises(EngineError, match=problem):
            run(executor, good._replace(**changed))
        run(executor, good)
    with pytest.raises(EngineError, match="2 steps at once, of at most 1"):
        executor.submit(good, SamplingPlan(2))


def test_a_kernel_that_fails_is_named(executor: NativeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor._library, "_run", lambda *_: 1)
    with pytest.raises(EngineError, match="the compiled model failed: call 0, of kernel"):
        run(executor, prompt(TOKENS, [5]))


def test_a_step_for_which_memory_ran_out_is_bound_anew(
    executor: NativeExecutor, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inputs were taken in, and the next one of the same sizes must not take the old memory for the results."""
    run(executor, prompt(TOKENS[:2], [1]))
    with monkeypatch.context() as patch:
        patch.setattr(_Memory, "fit", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            run(executor, prompt(TOKENS, [0, 1, 2]))
    output = run(executor, prompt(TOKENS, [0, 1, 2]))
    np.testing.assert_allclose(output.rows(range(3)), reference_logits(follow_of(artifact), TOKENS)[:3], atol=1e-4)


def test_blocks_are_copied_before_the_step(executor: NativeExecutor) -> None:
    run(executor, prompt(TOKENS, [5]))
    expected = run(executor, prompt(TOKENS, [5])).row(0).copy()
    batch = prompt(TOKENS, [5], first_block=5)._replace(copies=((0, 2, 5), (0, 3, 6)))
    last = batch._replace(
        tokens=batch.tokens[5:], positions=batch.positions[5:], slots=(batch.slots[0][5:],), query_starts=ints(0, 1), logit_rows=ints(0)
    )
    np.testing.assert_array_equal(run(executor, last).row(0), expected)


def test_calls_are_timed(executor: NativeExecutor) -> None:
    seen = []
    with executor.clocked(lambda nanoseconds, sizes: seen.append((list(nanoseconds), dict(sizes)))):
        run(executor, prompt(TOKENS, [5]))
    run(executor, prompt(TOKENS, [5]))
    ((nanoseconds, sizes),) = seen
    assert len(nanoseconds) == len(executor.plan.calls) == 1 and nanoseconds[0] > 0
    assert {sizes[name] for name in executor.plan.dims} == {6, 1, 2, 8} and (sizes["n"], sizes["b"], sizes["r"]) == (6, 1, 1)


def test_a_library_that_is_not_its_plans_is_refused(artifact: Artifact) -> None:
    file = artifact.path / LIBRARY
    loaded, plan = ctypes.CDLL(str(file)), read_plan(artifact.path / PLAN, artifact.manifest.function("forward"))
    Library(loaded, plan, file)
    for changed, problem in [
        ({"abi": 2}, r"lib\.so: cupola_abi: is 1, and the plan's 2"),
        ({"kernels": (replace(plan.kernels[0], name="other"),)}, r"lib\.so: lacks the function cupola_kernel_other"),
        ({"storages": (640,)}, r"lib\.so: cupola_workspace_bytes: is \d+ where the plan's is 640"),
    ]:
        with pytest.raises(ArtifactError, match=problem):
            Library(loaded, replace(plan, **changed), file)


def test_weights_that_are_not_what_the_model_takes_are_refused(artifact: Artifact) -> None:
    (weight,) = artifact.manifest.weights
    other = replace(artifact, manifest=replace(artifact.manifest, weights=(replace(weight, shape=(VOCAB * 2, VOCAB // 2)),)))
    with pytest.raises(ArtifactError, match=r"functions\.forward\.inputs: 'follow' is float32 \[528, 132\] where float32 \[264, 264\]"):
        load(other, [4])


def test_a_plan_that_was_replaced_since_the_manifest_was_read_is_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    (artifact.path / PLAN).write_text((artifact.path / PLAN).read_text() + " ")
    with pytest.raises(ArtifactError, match=r"plan\.json: does not match its SHA-256"):
        load(artifact, [4])


def test_more_blocks_than_there_is_memory_are_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostDevice, "memory_budget", lambda _: 8 << 20)
    with pytest.raises(OptionError, match="kv_memory: gives blocks of 30 MiB, and there is memory of 8"):
        load(artifact, [1_000_000])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
def test_a_forked_process_goes_on_with_threads_of_its_own(executor: NativeExecutor) -> None:
    batch = prompt(TOKENS, [5])
    expected = run(executor, batch).row(0).tobytes()
    pid = os.fork()
    if pid == 0:
        same = run(executor, batch).row(0).tobytes() == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(executor, batch).row(0).tobytes() == expected


def test_threads_are_as_many_as_the_environment_says(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 3, 2):
        monkeypatch.setenv("CUPOLA_NUM_THREADS", str(count))
        loaded = load(artifact, [8])
        assert loaded.num_threads == count
        run(loaded, prompt(TOKENS, [5]))
    assert num_threads() == 2
