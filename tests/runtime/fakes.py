"""A model that is nothing but its K/V cache: what it predicts depends on every slot, table and copy being right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from cupola.runtime.artifact.inputs import STEP_INPUTS
from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import NUM_BLOCKS, RECURRENT, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.device.block_store import BlockStore
from cupola.runtime.device.host import HostOutput
from cupola.runtime.device.interface import Batch, Float32, Int32, SamplingPlan, StepOutput
from cupola.runtime.engine.attention_sinks import SinkWindow
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.outputs import RequestOutput
from cupola.runtime.engine.sampling_params import SamplingParams

VOCAB, CONTEXT, BLOCK, STOP = 61, 48, 4, 60
MODEL = ModelConfig("fake", CONTEXT, VOCAB, (STOP,), relative_positions=True)
Counts = int | Sequence[int]  # of every group, or of each


def fake_logits(context: list[int]) -> Float32:
    """Logits that a change of any token in `context` changes."""
    seed = int.from_bytes(hashlib.blake2b(np.array(context, np.int64).tobytes(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).normal(0, 2, VOCAB).astype(np.float32)


def check_step(batch: Batch) -> None:
    """Holds a batch against the table of a step's inputs: every one that is not optional is there, with its type and sizes."""
    sizes: dict[str, int] = {}
    num_groups = len(batch.slots)
    for line in (line for line in STEP_INPUTS if not line.optional):
        arrays = getattr(batch, line.name) if line.each_group else (getattr(batch, line.name),)
        for array, spec in zip(arrays, line.specs(num_groups), strict=True):
            assert array.dtype == np.dtype(spec.dtype) and array.ndim == len(spec.shape), spec
            for size, found in zip(spec.shape, array.shape, strict=True):
                name, _, more = str(size).partition(" + ")
                assert sizes.setdefault(name, found - int(more or 0)) == found - int(more or 0), spec


def make_kv(windows: Sequence[int] = (0,), recurrent: bool = False) -> KVSpec:
    """A state group for each window; 0 sees everything. Behind them perhaps a recurrent one."""
    pools, state = (TensorSpec("pages", "int64", (NUM_BLOCKS, BLOCK, 2)),), (TensorSpec("state", "float32", (1, NUM_BLOCKS, 4)),)
    paged = tuple(KVGroup((i,), 1, 1, 1, window, pools) for i, window in enumerate(windows))
    return KVSpec((*paged, *([KVGroup((len(windows),), 0, 0, 0, 0, state, RECURRENT)] * recurrent)), "float32", BLOCK)


class FakeOutput:
    """Shows no more of a step than its sampling plan asks for."""

    def __init__(self, output: HostOutput, sampling: SamplingPlan) -> None:
        self._output, self._readable = output, set(sampling.rows)

    def result(self) -> StepOutput:
        return self

    def argmax(self) -> Int32:
        return self._output.argmax()

    def row(self, index: int) -> Float32:
        return self.rows([index])[0]

    def rows(self, indices: Sequence[int]) -> Float32:
        assert self._readable.issuperset(indices), "rows that were not asked for"
        return self._output.rows(indices)

    def maxima(self, index: int) -> Float32:
        assert index in self._readable, "a row that was not asked for"
        return self._output.maxima(index)


class FakeExecutor:
    """Keeps each token and its position in its slot of each group, and predicts from what the group that sees most shows it.

    The state of a recurrent group is the tokens that it has taken in.
    """

    max_steps = 5
    num_layers = 0
    draws_tokens = rounds_many = False

    def __init__(
        self, num_blocks: Counts = 64, num_swap_blocks: Counts = 0, windows: Sequence[int] = (0,), recurrent: bool = False
    ) -> None:
        self.windows, self.kv, num_groups = windows, make_kv(windows, recurrent), len(windows) + recurrent
        self.num_blocks, self.num_swap_blocks = (
            (count,) * num_groups if isinstance(count, int) else tuple(count) for count in (num_blocks, num_swap_blocks)
        )
        counts = [sum(pair) for pair in zip(self.num_blocks, self.num_swap_blocks, strict=True)]
        self.pages = [np.full((count, BLOCK, 2), -1) for count in counts[: len(windows)]]
        self.states: list[list[int]] = [[-1] for _ in range(counts[-1] if recurrent else 0)]
        self.forgets = False  # whether sequences may show it less than their tokens
        self.disk_is_full = False
        self.num_provided = [0 for _ in range(num_groups)]  # swap blocks
        self.num_failures = 0  # steps that are still to fail
        self.num_steps = self.num_tokens = 0

    def provide_swap(self, group: int, num_blocks: int) -> bool:
        if not self.disk_is_full:
            self.num_provided[group] = max(self.num_provided[group], num_blocks)
        return num_blocks <= self.num_provided[group]

    def read_block(self, group: int, block: int) -> bytes:
        return self.pages[group][block].tobytes() if group < len(self.pages) else json.dumps(self.states[block]).encode()

    def write_block(self, group: int, block: int, data: bytes | memoryview) -> bool:
        if group < len(self.pages):
            if len(data) != self.pages[group][block].nbytes:
                return False
            self.pages[group][block] = np.frombuffer(data, np.int64).reshape(BLOCK, 2)
        else:
            self.states[block] = json.loads(bytes(data))
        return True

    def submit(self, batch: Batch, sampling: SamplingPlan) -> FakeOutput:
        assert 1 <= sampling.num_steps <= self.max_steps
        chosen = []
        for _ in range(sampling.num_steps - 1):
            assert len(batch.tokens) == len(batch.context_lens) == len(batch.logit_rows)
            chosen.append(self._step(batch).tokens[-1])
            index, rows = batch.context_lens, np.arange(len(batch.positions))
            slots = [tables[rows, index // BLOCK] * BLOCK + index % BLOCK for tables in batch.block_tables]
            batch = batch._replace(
                tokens=chosen[-1],
                positions=batch.positions + 1,
                slots=tuple(s.astype(np.int32) for s in slots),
                context_lens=batch.context_lens + 1,
                copies=(),
            )
        output = self._step(batch)
        tokens = np.stack([*chosen, output.tokens[-1]])
        return FakeOutput(HostOutput(output.logits, output.block_maxima, tokens), sampling)

    def _step(self, batch: Batch) -> HostOutput:
        self.num_steps += 1
        n, b = len(batch.tokens), len(batch.context_lens)
        self.num_tokens += n
        assert 0 < n == len(batch.positions) == batch.query_starts[-1]
        assert len(batch.query_starts) == b + 1
        check_step(batch)
        self._copy(batch)
        for pages, slots, tables, num_blocks in zip(self.pages, batch.slots, batch.block_tables, self.num_blocks, strict=False):
            assert len(np.unique(slots)) == n, "two tokens in one slot"
            assert max(slots) < num_blocks * BLOCK
            assert tables.max() < num_blocks
            pages[slots // BLOCK, slots % BLOCK] = np.stack([batch.tokens, batch.positions], 1)
        if self.states:
            self._take_in(batch)
        if self.num_failures:
            self._fail(batch)
        for row in batch.query_starts[:-1]:  # who looks back the furthest
            self._row(batch, int(row))
        return HostOutput.of(np.array([self._row(batch, int(row)) for row in batch.logit_rows], np.float32).reshape(-1, VOCAB))

    def _take_in(self, batch: Batch) -> None:
        (slots,) = batch.state_slots.values()
        assert len(set(slots[:, 1].tolist())) == len(batch.context_lens) and slots.max() < self.num_blocks[-1]
        before = [self.states[source] for source, _ in slots]  # nobody writes to another's
        assert all(source == slot or source not in slots[:, 1] for source, slot in slots)
        spans = zip(before, slots[:, 1], batch.query_starts[:-1], batch.query_starts[1:], batch.context_lens, strict=True)
        for old, slot, start, end, length in spans:
            state = [] if length == end - start else old
            assert len(state) + end - start == length and -1 not in state, "a state that is not of the tokens before"
            self.states[slot] = [*state, *batch.tokens[start:end].tolist()]

    def _copy(self, batch: Batch) -> None:
        for group, source, target in batch.copies:
            num_blocks = self.num_blocks[group]
            pages: np.ndarray | list[list[int]] = self.pages[group] if group < len(self.pages) else self.states
            assert min(source, target) < num_blocks, "nothing is copied within the swap space"
            assert max(source, target) < num_blocks + self.num_provided[group], "a swap block that has no memory"
            pages[target] = pages[source]
            if source >= num_blocks:  # what came back is gone
                pages[source] = -1 if group < len(self.pages) else [-1]

    def _fail(self, batch: Batch) -> None:
        self.num_failures -= 1
        for group, _, target in batch.copies:
            if group < len(self.pages):
                self.pages[group][target] = -1
        for slot in (slot for slots in batch.state_slots.values() for slot in slots[:, 1]):
            self.states[slot] = [-1]
        for pages, slots in zip(self.pages, batch.slots, strict=True):
            pages[slots // BLOCK, slots % BLOCK] = -1
        raise RuntimeError("the device is on fire")

    def _row(self, batch: Batch, row: int) -> Float32:
        sequence = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
        last, num_later = int(batch.positions[row]), int(batch.query_starts[sequence + 1]) - 1 - row
        length = int(batch.context_lens[sequence]) - num_later
        assert length == last + 1 or (self.forgets and length <= last)
        contexts = [self.states[batch.state_slots[len(self.windows)][sequence, 1]][:length]] if self.states else []
        for pages, tables, window in zip(self.pages, batch.block_tables, self.windows, strict=True):
            first = max(0, length - window) if window else 0
            context = pages[tables[sequence]].reshape(-1, 2)[first:length]
            assert context[:, 1].tolist() == list(range(last + 1 - len(context), last + 1)), "positions are not where the block table says"
            contexts.append(context[:, 0].tolist())
        longest = max(contexts, key=len)
        assert all(longest[len(longest) - len(context) :] == context for context in contexts), "groups hold different tokens"
        return fake_logits(longest)


def make_engine(
    num_blocks: Counts = 64,
    num_swap_blocks: Counts = 0,
    windows: Sequence[int] = (0,),
    recurrent: bool = False,
    block_store: BlockStore | None = None,
    **config: object,
) -> Engine:
    executor = FakeExecutor(num_blocks, num_swap_blocks, windows, recurrent)
    executor.forgets = "attention_window" in config
    return Engine(executor, MODEL, executor.kv, EngineConfig(**config), block_store=block_store)


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
    """The completions of a request when nothing runs beside it, without a cache and in one piece."""
    engine = make_engine(64 * params.n, enable_prefix_caching=False, max_num_batched_tokens=4096, max_num_seqs=64)
    engine.add_request("alone", prompt, params)
    return completions(run_all(engine)["alone"])


def completions(output: RequestOutput) -> list[tuple[list[int], str | None]]:
    return [(completion.token_ids, completion.finish_reason) for completion in output.outputs]


def greedy_reference(
    prompt: list[int], num_tokens: int, *, stop: bool = True, window: int = 0, sinks: SinkWindow | None = None
) -> list[int]:
    """Greedy tokens straight from the definition, without an engine. The model sees `window` tokens (0: all), or what `sinks` keep."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        seen = tokens[-window:]
        if sinks:
            seen = tokens[: sinks.num_sinks] + tokens[sinks.num_sinks + sinks.num_dropped(len(tokens) - 1) :]
        tokens.append(int(fake_logits(seen).argmax()))
        if stop and tokens[-1] == STOP:
            break
    return tokens[len(prompt) :]
