"""Which tokens run in the next step: continuous batching under a token budget, chunked prefill, preemption.

A request's way: `add` → waiting → (blocks from the prefix cache) → running, chunk by chunk until its prompt is
computed → forked into its n completions → a token a step → finished. A sequence that must give way goes back to
waiting without its blocks. If the swap space has room, their K/V is put there, and later copied into other blocks; else
the sequence computes its tokens again.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from types import MappingProxyType

from cupola.runtime.engine.draft_states import DraftStates
from cupola.runtime.engine.outputs import DraftCounts
from cupola.runtime.engine.request import RankedLogprobs, Request, Sequence, Status
from cupola.runtime.engine.sampler import Samples
from cupola.runtime.engine.state_manager import Copies, State, StateManager
from cupola.runtime.engine.step import Chunk, Step, build_step
from cupola.runtime.engine.stored_prefixes import StoredPrefixes
from cupola.runtime.engine.token_tree import TokenTree, num_alike

Branches = dict[Sequence, list[tuple[tuple[int, ...], State]]]


class Scheduler:
    """Holds all unfinished requests, and the only writer of their state.

    Args:
        states: the blocks of all state groups, and those of the swap space, to which the K/V of sequences that give way is put, as far as
            there is room.
        max_num_seqs: sequences in one step.
        max_num_batched_tokens: tokens in one step.
        max_num_mixed_prefill_tokens: of those, prompt tokens in a step in which running sequences decode: they wait for each other.
        draws_tokens: whether the model finds tokens by their sequence's sampling parameters, or just the likeliest.
        stored: the prefix cache on disk, if there is one.
    """

    def __init__(
        self,
        states: StateManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_mixed_prefill_tokens: int,
        draws_tokens: bool = False,
        stored: StoredPrefixes | None = None,
    ) -> None:
        self.states, self.max_num_seqs = states, max_num_seqs
        self.max_num_batched_tokens, self.max_num_mixed_prefill_tokens = max_num_batched_tokens, max_num_mixed_prefill_tokens
        self.draws_tokens, self.stored = draws_tokens, stored
        self.requests: dict[str, Request] = {}
        self.waiting: list[Sequence] = []  # by rank
        self.running: list[Sequence] = []
        self.num_preemptions = self.num_prefix_queries = self.num_prefix_hits = 0  # the last two in tokens
        self.num_swapped_out = self.num_swapped_in = 0  # in blocks
        self.num_steps = self.num_step_tokens = 0  # of the model, when they went well
        self.num_generated_tokens = 0
        self.draft_counts = DraftCounts()
        self._draft_states = DraftStates(states)
        self._changed: dict[str, Request] = {}  # a failed step keeps them for the next one

    def add(self, request: Request) -> None:
        """Takes a request whose prompt fits into the pool."""
        self.requests[request.spec.request_id] = request
        self._wait(request.sequences[0])

    @property
    def only_decodes(self) -> bool:
        """True if the next step is one of sequences that decode: no prompt is left to compute, and none is about to be."""
        return all(s.decoding for s in self.running) and not (self.waiting and len(self.running) < self.max_num_seqs)

    def schedule(self, max_steps: int = 1, drafts: Mapping[Sequence, TokenTree] = MappingProxyType({})) -> Step:
        """Plans a step, in which the model may take up to `max_steps`; at least one request must be unfinished.

        `drafts` are tokens that may come next in decoding sequences. As many as there is room for are looked at in the same step.

        Running sequences come first, decodes before prefill chunks, so that a long prompt does not stall running
        streams. When blocks run out, the sequence of the last rank gives way. What budget prompts have left goes to
        waiting sequences in the order of their ranks, unless a preemption just showed that there is no room.
        """
        self._fetch()
        plan: dict[Sequence, int] = {}
        copies: Copies = []
        decodes = [sequence for sequence in self.running if sequence.decoding]
        budget, preempted = self._budgets(sum(sequence.num_new_tokens for sequence in decodes)), False
        for sequence in decodes + [sequence for sequence in self.running if not sequence.decoding]:
            num_tokens = self._num_fitting(sequence, budget[sequence.decoding])
            while num_tokens and sequence.status is Status.RUNNING:
                moved = self._reserve(sequence, num_tokens)
                if moved is not None:
                    plan[sequence] = num_tokens
                    budget[sequence.decoding] -= num_tokens
                    copies += moved
                    break
                victim = max(self.running, key=lambda sequence: sequence.rank)
                budget[victim.decoding] += plan.pop(victim, 0)
                preempted = True
                copies += self._swap_out(victim)
                self._preempt(victim)
        while self.waiting and budget[False] and not preempted and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            copies += self._swap_in(sequence)
            plan[sequence] = num_tokens = self._num_fitting(sequence, budget[False])
            copies += self._reserve(sequence, num_tokens) or []
            budget[False] -= num_tokens
        fitting, branches = self._fit_drafts(plan, drafts, copies) if drafts else ({}, {})
        num_steps = 1 if fitting else self._choose_num_steps(plan, max_steps)
        sizes = (self.states.block_size, self.states.num_sinks, num_steps)
        return build_step(plan, copies, *sizes, self.draws_tokens, fitting, branches)

    def update(self, step: Step, samples: Samples) -> list[Request]:
        """Takes in what a step computed. Returns the requests that have something new."""
        self.num_steps += step.num_steps
        self.num_step_tokens += len(step.batch.tokens) + (step.num_steps - 1) * len(step.chunks)
        went_back = self._draft_states.settle(step, samples)
        for chunk in (chunk for chunk in step.chunks if chunk.sequence not in went_back):
            # Who must wait for a grammar computes the last token again, to have its logits when the grammar has spoken.
            self._advance(chunk, chunk.end - (chunk.sequence in samples.delayed and not self.states.slots))
        for score in samples.prompt_scores:
            score.request.add_prompt_scores(score.logprobs, score.logits)
        for sample in samples.tokens:  # all forks first: a parent that finishes gives its blocks away
            if sample.sequence.status is Status.UNBORN:
                self._fork(sample.sequence.request.sequences[0], sample.sequence)
        drafted = [chunk.sequence for chunk in step.chunks if chunk.draft and chunk.sequence not in went_back]
        for sample in samples.tokens:
            sequence = sample.sequence
            if sequence.status is Status.FINISHED:  # by a token that the same step brought
                continue
            if step.num_steps > 1 or sequence in drafted:
                self._note_computed(sequence, len(sequence.token_ids))  # the model went on with what it chose, or what was drafted is right
            self._append(sequence, sample.token_id, sample.logprobs)
        for end in samples.ends:
            if end.sequence.status is not Status.FINISHED:
                end.sequence.end("error" if end.error else "stop", end.error)
                self._note(end.sequence)
        for chunk in (chunk for chunk in step.chunks if chunk.draft):
            self._count_draft(chunk)
            self.states.cut(chunk.sequence.state, chunk.sequence.num_computed_tokens)  # drafted tokens that did not come leave nothing
        for sequence in (sequence for sequence in went_back if sequence.status is Status.RUNNING):
            sequence.num_again = sequence.num_new_tokens - 1
        if self.states.slots:  # a recurrent state has taken in the token that must be computed again, so it goes back to a checkpoint
            for sequence in samples.delayed:
                if sequence.status is Status.RUNNING and sequence not in went_back:
                    self._preempt(sequence)
        changed, self._changed = self._changed, {}
        return list(changed.values())

    def recover(self) -> None:
        """After a failed step, whose K/V can't be trusted: whatever runs gives its blocks up and computes its tokens again.

        So does what waits with blocks in the swap space: the step may have been about to fill them.
        """
        self._draft_states.release()
        for sequence in self.waiting:
            self.states.forget_swapped(sequence.state)
        for sequence in list(self.running):
            self._preempt(sequence)

    def abort(self, request_id: str) -> Request | None:
        """Forgets a request and frees its blocks; None if there is none of that name (any more)."""
        request = self.requests.pop(request_id, None)
        self._changed.pop(request_id, None)
        for sequence in request.sequences if request else ():
            self._retire(sequence)
            self.states.forget_swapped(sequence.state)
            sequence.status = Status.FINISHED
        return request

    def check_integrity(self) -> None:
        """Checks that running sequences, and nothing else, hold blocks, and waiting ones swap blocks. Raises EngineError."""
        running, waiting = ([sequence.state for sequence in sequences] for sequences in (self.running, self.waiting))
        self.states.check_integrity(running, waiting)

    def _budgets(self, num_decoding: int) -> dict[bool, int]:
        """How many tokens a step may take of decoding sequences (True), which have so many, and of prompts (False).

        Prompts get nothing while more sequences decode than a step has tokens. They do not starve: it is from prompts that
        decoding sequences come.
        """
        limit = self.max_num_mixed_prefill_tokens if num_decoding else self.max_num_batched_tokens
        return {True: self.max_num_batched_tokens, False: max(0, min(limit, self.max_num_batched_tokens - num_decoding))}

    def _choose_num_steps(self, plan: Mapping[Sequence, int], max_steps: int) -> int:
        """As many steps as all sequences can go on for with nobody waiting for them to end, and reserves blocks for these."""
        if max_steps == 1 or self.waiting or any(sequence.state.runs_sinks for sequence in plan):
            return 1
        if not all(sequence.goes_on_alone(self.draws_tokens) for sequence in plan):
            return 1
        fitting = (sequence.request.spec.max_length - len(sequence.token_ids) for sequence in plan)
        alike = (self.states.most_new_tokens(sequence.num_computed_tokens, len(sequence.token_ids)) for sequence in plan)
        num_steps = min(max_steps, *fitting, *alike)
        states = [(sequence.state, sequence.num_computed_tokens) for sequence in plan]
        return num_steps if self.states.reserve_all(states, num_steps) else 1

    def _fit_drafts(
        self, plan: Mapping[Sequence, int], drafts: Mapping[Sequence, TokenTree], copies: Copies
    ) -> tuple[dict[Sequence, tuple[int, ...]], Branches]:
        """As much of the drafts as the step, the sequences and the free blocks have room for, and reserves blocks for it.

        What is shared with a branch must be copied first, which is added to `copies`.
        """
        room = self.max_num_batched_tokens - sum(plan.values())
        fitting, branches = dict[Sequence, tuple[int, ...]](), Branches()
        for sequence, tree in drafts.items():
            if plan.get(sequence) != sequence.num_new_tokens or sequence.state.runs_sinks:
                continue
            start, num_known = sequence.num_computed_tokens, len(sequence.token_ids)
            alike = self.states.most_new_tokens(start, num_known) - sequence.num_new_tokens
            most = max(0, min(room, alike, sequence.request.spec.max_length - num_known - 1))
            trunk = tree.trunk[:most]
            if not trunk or self.states.reserve(sequence.state, start, num_known + len(trunk)) is None:  # its last block is its own by now
                continue
            if not self._draft_states.set_aside(sequence):
                continue
            fitting[sequence] = trunk
            room -= len(trunk)
            for chain in (branch[:most] for branch in (tree.branches if self._draft_states.can_branch else ())):
                if num_alike(trunk, chain) == min(len(trunk), len(chain)) or len(chain) >= room:
                    continue
                if (state := self._draft_states.branch(sequence, num_known + len(chain), copies)) is not None:
                    branches.setdefault(sequence, []).append((chain, state))
                    room -= 1 + len(chain)
        return fitting, branches

    def _num_fitting(self, sequence: Sequence, budget: int) -> int:
        num_tokens, states = min(sequence.num_new_tokens, budget), self.states
        if states.sinks is None and states.slots is None:
            return num_tokens
        return min(num_tokens, states.most_new_tokens(sequence.num_computed_tokens, len(sequence.token_ids)))

    def _reserve(self, sequence: Sequence, num_tokens: int) -> Copies | None:
        start = sequence.num_computed_tokens
        return self.states.reserve(sequence.state, start, start + num_tokens)

    def _fetch(self) -> None:
        """Reads from disk what sequences that may be admitted in this step could begin with."""
        if self.stored is None:
            return
        for sequence in self.waiting[: self.max_num_seqs - len(self.running)]:
            if not sequence.state.swap_tables and self.states.could_begin(len(sequence.token_ids), len(self.running)):
                self.stored.fetch(self._hashes(sequence))

    def _hashes(self, sequence: Sequence) -> SequenceOf[bytes]:
        """The hashes of the blocks that a sequence may begin with. The last token is always computed: its logits are wanted."""
        block_size = self.states.block_size
        if not self.states.enable_prefix_caching or sequence.request.wants_scores:
            return ()
        return sequence.block_hashes((len(sequence.token_ids) - 1) // block_size, block_size)

    def _admit(self, sequence: Sequence) -> bool:
        """Lets a waiting sequence run if all its tokens fit, with a block for each running sequence to grow into."""
        request, states, block_size = sequence.request, self.states, self.states.block_size
        num_cached = states.begin(sequence.state, self._hashes(sequence))
        if not states.has_room(sequence.state, len(sequence.token_ids), len(self.running)):
            states.release(sequence.state)
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.status = Status.RUNNING
        sequence.num_computed_tokens = num_cached * block_size
        if request.num_cached_tokens is None:  # else it is here again, or is a completion of a prompt that was
            self.num_prefix_queries += len(sequence.token_ids)
            self.num_prefix_hits += num_cached * block_size
            request.num_cached_tokens, request.first_scheduled_time = num_cached * block_size, time.monotonic()
        return True

    def _swap_out(self, sequence: Sequence) -> Copies:
        """The copies that put what is computed of a sequence into the swap space; none if there is no room."""
        copies = self.states.swap_out(sequence.state, sequence.num_computed_tokens)
        self.num_swapped_out += len(copies)
        return copies

    def _swap_in(self, sequence: Sequence) -> Copies:
        """The copies that bring back what an admitted sequence has in the swap space beyond its cached prefix."""
        sequence.num_computed_tokens = max(sequence.num_computed_tokens, sequence.state.num_swapped_tokens)
        copies = self.states.swap_in(sequence.state)
        self.num_swapped_in += len(copies)
        return copies

    def _advance(self, chunk: Chunk, num_computed_tokens: int) -> None:
        sequence, request = chunk.sequence, chunk.sequence.request
        if request.wants_scores:  # a preempted prompt passes some tokens again
            request.num_scored_tokens = max(request.num_scored_tokens, min(chunk.end, len(request.spec.prompt_token_ids)))
        self._note_computed(sequence, num_computed_tokens)

    def _note_computed(self, sequence: Sequence, num_computed_tokens: int) -> None:
        sequence.num_computed_tokens, sequence.num_again, states = num_computed_tokens, 0, self.states
        num_blocks = num_computed_tokens // states.block_size
        if num_blocks > sequence.state.num_published and states.enable_prefix_caching:
            states.publish(sequence.state, num_blocks, sequence.block_hashes(num_blocks, states.block_size))
        if states.slots and states.enable_prefix_caching and num_computed_tokens % states.block_size == 0:
            hashes = sequence.block_hashes(num_blocks, states.block_size)
            states.keep(sequence.state, num_computed_tokens, len(sequence.token_ids), hashes)
        states.advance(sequence.state, num_computed_tokens)

    def _count_draft(self, chunk: Chunk) -> None:
        for counts in (self.draft_counts, chunk.sequence.request.draft_counts):
            counts.add(sum(len(chain.draft) for chain in (chunk, *chunk.branches)), chunk.num_right)

    def _append(self, sequence: Sequence, token_id: int, logprobs: RankedLogprobs | None) -> None:
        request = sequence.request
        sequence.append(token_id, None if logprobs is None else request.describe(logprobs))
        self.num_generated_tokens += 1
        if request.first_token_time is None:
            request.first_token_time = time.monotonic()
        self._note(sequence)

    def _note(self, sequence: Sequence) -> None:
        """Reports a sequence that has something new, and lets go of it if that was its last."""
        request = sequence.request
        self._changed[request.spec.request_id] = request
        if sequence.status is Status.FINISHED:
            self._retire(sequence)
            if request.finished:
                request.finished_time = time.monotonic()
                del self.requests[request.spec.request_id]

    def _fork(self, parent: Sequence, child: Sequence) -> None:
        """Lets `child` share what was computed of the prompt, or wait for its turn if no more sequences may run."""
        if len(self.running) == self.max_num_seqs:
            self._wait(child)
            return
        child.state, child.num_computed_tokens = self.states.fork(parent.state), parent.num_computed_tokens
        child.status = Status.RUNNING
        self.running.append(child)

    def _preempt(self, sequence: Sequence) -> None:
        sequence.request.num_preemptions += 1
        self.num_preemptions += 1
        self._retire(sequence)
        self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=lambda sequence: sequence.rank)

    def _retire(self, sequence: Sequence) -> None:
        """Takes a sequence off its list, and its blocks away."""
        for sequences in (self.running, self.waiting):
            if sequence in sequences:
                sequences.remove(sequence)
        self.states.release(sequence.state)
        sequence.num_computed_tokens = sequence.num_again = 0
