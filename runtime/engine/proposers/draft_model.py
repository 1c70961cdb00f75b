"""A small model that says what a large one of the same vocabulary may say next (arXiv:2211.17192)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from itertools import takewhile
from math import prod

import numpy as np

from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.interface import Executor, Float32, StepOutput
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
    doubts = True

    def __init__(self, executor: Executor, model: ModelConfig, kv: KVSpec, vocab_size: int) -> None:
        self._executor, self._model, self._vocab_size = executor, model, vocab_size
        nothing = [0] * len(executor.num_blocks)
        self._states = StateManager(
            kv, executor.num_blocks, nothing, lambda *_: False, max_num_new_tokens=CHUNK, enable_prefix_caching=False
        )
        self._sequences: OrderedDict[str, Sequence] = OrderedDict()  # who was asked about last stands last
        self._num_made = 0

    def warm_up(self) -> None:
        """Lets the system bring the model's weights now: in the midst of the first answer they would take the time of several tokens."""
        context = Context("warm-up", (0,), 1, b"", 1)
        self.propose([context])
        self.forget(context)

    def propose(self, contexts: SequenceOf[Context]) -> list[Draft]:
        """As `Proposer`."""
        try:
            found = self._find([c for c in contexts if len(c.token_ids) + c.most <= self._model.context_length])
        except BaseException:  # whose K/V can't be trusted
            for sequence in self._sequences.values():
                self._states.release(sequence.state)
            raise
        return [self._draft(found[context.name]) if context.name in found else NO_DRAFT for context in contexts]

    def _find(self, contexts: SequenceOf[Context]) -> dict[str, _Guess]:
        """Guesses of each sequence, by its name, which end where their chance falls below what is worth it."""
        for context in contexts:
            self._take_in(context)
        wanted = [self._sequences[context.name] for context in contexts]
        guesses = [_Guess(s, c) for s, c in zip(wanted, contexts, strict=True) if self._catch_up(s, c.most, wanted)]
        going, is_first = guesses, True
        while going:
            new = {guess.sequence: guess.sequence.num_new_tokens if is_first else 1 for guess in going}
            output = self._run(new, range(len(going)))
            for row, (guess, token_id) in enumerate(zip(going, output.argmax()[-1].tolist(), strict=True)):
                guess.add(token_id, share_of_largest(output.maxima(row)))
            going, is_first = [guess for guess in going if guess.goes_on], False
        for guess in guesses:  # a window moves on no further: what is drafted may be taken back
            self._states.advance(guess.sequence.state, guess.num_known)
        return {guess.sequence.request.spec.request_id: guess for guess in guesses}

    def forget(self, context: Context) -> None:
        """As `Proposer`."""
        if (sequence := self._sequences.pop(context.name, None)) is not None:
            self._states.release(sequence.state)

    def check_integrity(self) -> None:
        """Checks that known sequences, and nothing else, hold blocks. Raises EngineError."""
        self._states.check_integrity([sequence.state for sequence in self._sequences.values()], [])

    def _draft(self, guess: _Guess) -> Draft:
        token_ids = list(takewhile(lambda token_id: token_id < self._vocab_size, guess.token_ids))
        return Draft(tuple(token_ids), chances=tuple(guess.chances[: len(token_ids)]))

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
            self._run({sequence: num_new})
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

    def _run(self, plan: Mapping[Sequence, int], rows: SequenceOf[int] = ()) -> StepOutput:
        step = build_step(plan, (), self._states.block_size)
        return self._executor.submit(step.batch, step.sampling._replace(rows=tuple(rows))).result()


class _Guess:
    """A sequence that has grown by what was guessed, of which all but the last token is computed."""

    def __init__(self, sequence: Sequence, context: Context) -> None:
        self.sequence, self.num_known, self._context = sequence, len(sequence.token_ids), context
        self.chances: list[float] = []

    @property
    def token_ids(self) -> list[int]:
        """The guessed ones."""
        return self.sequence.token_ids[self.num_known :]

    @property
    def goes_on(self) -> bool:
        """True if one more is wanted."""
        return len(self.chances) < self._context.most and prod(map(self._context.chance, self.chances)) >= self._context.least

    def add(self, token_id: int, chance: float) -> None:
        """Adds what a step found, which computed all tokens so far."""
        self.sequence.num_computed_tokens = len(self.sequence.token_ids)
        self.sequence.token_ids.append(token_id)
        self.chances.append(chance)


def share_of_largest(maxima: Float32) -> float:
    """The probability of the likeliest token, where of each block of logits no other token has any, by the blocks' largest logits."""
    largest = maxima.max()
    return 1 / float(np.exp(maxima - largest).sum()) if np.isfinite(largest) else 0.0
