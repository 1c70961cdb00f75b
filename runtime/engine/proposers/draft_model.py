"""A small model that says what a large one of the same vocabulary may say next (arXiv:2211.17192)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.interface import Executor, StepOutput
from cupola.runtime.engine.proposers.proposer import NO_DRAFT, Context, Draft
from cupola.runtime.engine.request import Request, RequestSpec, Sequence
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.state_manager import StateManager
from cupola.runtime.engine.step import build_step

CHUNK = 512  # tokens of a prompt in a step
CATCH_UP = 16  # tokens that are new to it, up to which a sequence's are computed together with others'
PARAMS = SamplingParams(temperature=0, detokenize=False)


class DraftModelProposer:
    """Keeps each sequence's K/V in blocks of its own, and computes what is new to it: what came and, then, what it takes to be likeliest.

    Where blocks run out, the sequence that waited longest gives its own up.

    Args:
        executor: of the small model.
        model: its context and vocabulary.
        kv: its state groups, none of them recurrent.
        vocab_size: of the large model: tokens beyond it are none.
    """

    is_free = False

    def __init__(self, executor: Executor, model: ModelConfig, kv: KVSpec, vocab_size: int) -> None:
        self._executor, self._model, self._vocab_size = executor, model, vocab_size
        nothing = [0] * len(executor.num_blocks)
        self._states = StateManager(
            kv, executor.num_blocks, nothing, lambda *_: False, max_num_new_tokens=CHUNK, enable_prefix_caching=False
        )
        self._sequences: OrderedDict[str, Sequence] = OrderedDict()  # who was asked about last stands last
        self._num_made = 0

    def propose(self, contexts: SequenceOf[Context]) -> list[Draft]:
        """As `Proposer`."""
        try:
            found = self._find([c for c in contexts if len(c.token_ids) + c.most <= self._model.context_length])
        except BaseException:  # whose K/V can't be trusted
            for sequence in self._sequences.values():
                self._states.release(sequence.state)
            raise
        return [self._draft(found.get(context.name, []), context.most) for context in contexts]

    def _find(self, contexts: SequenceOf[Context]) -> dict[str, list[int]]:
        """The tokens that each sequence may say next, as many for all, by its name."""
        for context in contexts:
            self._take_in(context)
        most = max((context.most for context in contexts), default=0)
        wanted = [self._sequences[context.name] for context in contexts]
        going = [sequence for sequence in wanted if self._catch_up(sequence, most, wanted)]
        num_known = [len(sequence.token_ids) for sequence in going]
        if going:
            self._append(going, self._run({sequence: sequence.num_new_tokens for sequence in going}, 1), 1)
        num_left = most - 1
        while going and num_left:
            num_steps = min(num_left, self._executor.max_steps)
            self._append(going, self._run(dict.fromkeys(going, 1), num_steps), num_steps)
            num_left -= num_steps
        for sequence, length in zip(going, num_known, strict=True):  # a window moves on no further: what is drafted may be taken back
            self._states.advance(sequence.state, length)
        return {s.request.spec.request_id: s.token_ids[length:] for s, length in zip(going, num_known, strict=True)}

    def forget(self, context: Context) -> None:
        """As `Proposer`."""
        if (sequence := self._sequences.pop(context.name, None)) is not None:
            self._states.release(sequence.state)

    def check_integrity(self) -> None:
        """Checks that known sequences, and nothing else, hold blocks. Raises EngineError."""
        self._states.check_integrity([sequence.state for sequence in self._sequences.values()], [])

    def _draft(self, token_ids: SequenceOf[int], most: int) -> Draft:
        end = next((i for i, token_id in enumerate(token_ids[:most]) if token_id >= self._vocab_size), most)
        return Draft(tuple(token_ids[:end])) if end else NO_DRAFT

    def _take_in(self, context: Context) -> None:
        """Replaces what was drafted of a sequence by what came; what was right is computed already."""
        sequence = self._sequences.get(context.name) or self._make(context)
        self._sequences[context.name] = sequence
        self._sequences.move_to_end(context.name)
        old, new = sequence.token_ids, context.token_ids
        alike = max(0, min(len(old), len(new)) - 2 * CATCH_UP)  # more than that is never drafted
        while alike < min(len(old), len(new)) and old[alike] == new[alike]:
            alike += 1
        del old[alike:]
        old += new[alike:]
        sequence.num_computed_tokens = min(sequence.num_computed_tokens, alike, len(old) - 1)

    def _make(self, context: Context) -> Sequence:
        self._num_made += 1
        spec = RequestSpec(
            context.name, None, tuple(context.token_ids), PARAMS, frozenset(), frozenset(), self._model.context_length, (0,), self._num_made
        )
        return Request(spec, None).sequences[0]

    def _catch_up(self, sequence: Sequence, most: int, wanted: SequenceOf[Sequence]) -> bool:
        """Computes all but the latest tokens, and takes blocks for these and for `most` after them; False if there are no blocks."""
        if not sequence.state.tables:
            self._states.begin(sequence.state, ())
            sequence.num_computed_tokens = 0
        while sequence.num_new_tokens > CATCH_UP:
            num_new = min(sequence.num_new_tokens - 1, CHUNK)
            if not self._reserve(sequence, sequence.num_computed_tokens + num_new, wanted):
                return False
            self._run({sequence: num_new}, 1)
            sequence.num_computed_tokens += num_new
            self._states.advance(sequence.state, sequence.num_computed_tokens)
        return self._reserve(sequence, len(sequence.token_ids) + most, wanted)

    def _reserve(self, sequence: Sequence, end: int, wanted: SequenceOf[Sequence]) -> bool:
        """Takes blocks for tokens up to `end`, from sequences that are not `wanted` now if none are free."""
        while self._states.reserve(sequence.state, sequence.num_computed_tokens, end) is None:
            holder = next((other for other in self._sequences.values() if other.state.tables and other not in wanted), None)
            if holder is None:
                self._states.release(sequence.state)
                return False
            self._states.release(holder.state)
        return True

    def _run(self, plan: Mapping[Sequence, int], num_steps: int) -> StepOutput:
        step = build_step(plan, (), self._states.block_size, num_steps=num_steps)
        return self._executor.submit(step.batch, step.sampling).result()

    def _append(self, sequences: SequenceOf[Sequence], output: StepOutput, num_steps: int) -> None:
        """Adds what the model found, of which all but the last is computed. Each sequence had one row."""
        found = output.argmax()[-num_steps:].T.tolist()
        for sequence, token_ids in zip(sequences, found, strict=True):
            sequence.num_computed_tokens = len(sequence.token_ids) + num_steps - 1
            sequence.token_ids += token_ids
