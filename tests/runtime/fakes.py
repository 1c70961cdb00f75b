"""A model that is nothing but its K/V cache: what it predicts depends on every slot, table and copy being right."""

from __future__ import annotations

import hashlib

import numpy as np

from cupola.runtime.artifact.inputs import STEP_INPUTS
from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.device.interface import Batch, Float32, Logits
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.outputs import RequestOutput
from cupola.runtime.engine.sampling_params import SamplingParams

VOCAB, CONTEXT, BLOCK, STOP = 61, 48, 4, 60
MODEL = ModelConfig("fake", CONTEXT, VOCAB, (STOP,))


def fake_logits(context: list[int]) -> Float32:
    """Logits that a change of any token in `context` changes."""
    seed = int.from_bytes(hashlib.blake2b(np.array(context, np.int64).tobytes(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)


def check_step(batch: Batch) -> None:
    """Holds a batch against the table of a step's inputs: every one that is not optional is there, with its type and sizes."""
    sizes: dict[str, int] = {}
    for line in (line for line in STEP_INPUTS if not line.optional):
        array = getattr(batch, line.name)
        assert array.dtype == np.dtype(line.dtype) and array.ndim == len(line.shape), line
        for size, found in zip(line.shape, array.shape, strict=True):
            name, _, more = str(size).partition(" + ")
            assert sizes.setdefault(name, found - int(more or 0)) == found - int(more or 0), line


class FakeExecutor:
    """Keeps each token and its position in its slot, and predicts from the whole context as the block table shows it."""

    max_steps = 5

    def __init__(self, num_blocks: int, num_swap_blocks: int) -> None:
        self.num_blocks, self.num_swap_blocks = num_blocks, num_swap_blocks
        self.pages = np.full((num_blocks + num_swap_blocks, BLOCK, 2), -1)
        self.disk_is_full = False
        self.num_provided = 0  # swap blocks
        self.num_failures = 0  # steps that are still to fail
        self.num_steps = self.num_tokens = 0

    def provide_swap(self, num_blocks: int) -> bool:
        if not self.disk_is_full:
            self.num_provided = max(self.num_provided, num_blocks)
        return num_blocks <= self.num_provided

    def run(self, batch: Batch, num_steps: int = 1) -> Logits:
        assert 1 <= num_steps <= self.max_steps
        chosen = []
        for _ in range(num_steps - 1):
            assert len(batch.tokens) == len(batch.context_lens) == len(batch.logit_rows)
            chosen.append(self._step(batch).argmax[-1])
            positions = batch.positions + 1
            slots = batch.block_tables[np.arange(len(positions)), positions // BLOCK] * BLOCK + positions % BLOCK
            batch = batch._replace(
                tokens=chosen[-1], positions=positions, slots=slots.astype(np.int32), context_lens=batch.context_lens + 1, copies=()
            )
        logits = self._step(batch)
        return Logits(logits.values, logits.maxima, np.stack([*chosen, logits.argmax[-1]]))

    def _step(self, batch: Batch) -> Logits:
        self.num_steps += 1
        n, b = len(batch.tokens), len(batch.context_lens)
        self.num_tokens += n
        assert 0 < n == len(batch.positions) == len(batch.slots) == batch.query_starts[-1]
        assert len(batch.query_starts) == b + 1
        assert len(np.unique(batch.slots)) == n, "two tokens in one slot"
        check_step(batch)
        for source, target in batch.copies:
            assert min(source, target) < self.num_blocks, "nothing is copied within the swap space"
            assert max(source, target) < self.num_blocks + self.num_provided, "a swap block that has no memory"
            self.pages[target] = self.pages[source]
            if source >= self.num_blocks:
                self.pages[source] = -1  # what came back is gone
        assert max(batch.slots) < self.num_blocks * BLOCK
        assert batch.block_tables.max() < self.num_blocks
        self.pages[batch.slots // BLOCK, batch.slots % BLOCK] = np.stack([batch.tokens, batch.positions], 1)
        if self.num_failures:
            self.num_failures -= 1
            self.pages[[target for _, target in batch.copies]] = -1
            self.pages[batch.slots // BLOCK, batch.slots % BLOCK] = -1
            raise RuntimeError("the device is on fire")
        return Logits.of(np.array([self._row(batch, int(row)) for row in batch.logit_rows], np.float32).reshape(-1, VOCAB))

    def _row(self, batch: Batch, row: int) -> Float32:
        sequence = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
        length = int(batch.positions[row]) + 1
        context = self.pages[batch.block_tables[sequence]].reshape(-1, 2)[:length]
        assert batch.context_lens[sequence] >= length
        assert context[:, 1].tolist() == list(range(length)), "positions are not where the block table says"
        return fake_logits(context[:, 0].tolist())


def make_engine(num_blocks: int = 64, num_swap_blocks: int = 0, **config: object) -> Engine:
    return Engine(FakeExecutor(num_blocks, num_swap_blocks), MODEL, BLOCK, EngineConfig(**config))


def run_all(engine: Engine) -> dict[str, RequestOutput]:
    """Steps until nothing is left; checks every block after every step."""
    outputs = {}
    while engine.has_unfinished_requests():
        for request in engine.step():
            outputs[request.spec.request_id] = request.output()
        engine.scheduler.check_integrity()
    engine.check_idle()
    return outputs


def generate_alone(prompt: list[int], params: SamplingParams) -> list[tuple[list[int], str | None]]:
    """What a request gives when nothing runs beside it, without a cache and in one piece."""
    engine = make_engine(64 * params.n, enable_prefix_caching=False, max_num_batched_tokens=4096, max_num_seqs=64)
    engine.add_request("alone", prompt, params)
    return completions(run_all(engine)["alone"])


def completions(output: RequestOutput) -> list[tuple[list[int], str | None]]:
    return [(completion.token_ids, completion.finish_reason) for completion in output.outputs]


def greedy_reference(prompt: list[int], num_tokens: int, *, stop: bool = True) -> list[int]:
    """Greedy tokens straight from the definition, without an engine."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        tokens.append(int(fake_logits(tokens).argmax()))
        if stop and tokens[-1] == STOP:
            break
    return tokens[len(prompt) :]
