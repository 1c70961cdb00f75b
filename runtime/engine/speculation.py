"""Speculative decoding: which sequences bring drafted tokens into a step, and how many, so that tokens come sooner.

The model looks at a sequence's drafted tokens in one step, and the sampler takes of them what it would have taken anyway (`sampler.py`). So
a draft changes no token, only time: a step of more tokens takes longer, and is worth it if enough of them are right. Both are learned as
steps pass: what steps take by their size (`step_costs.py`), and how often drafts are right (`acceptance.py`), also of drafts that were not
brought into a step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from itertools import accumulate, repeat, takewhile
from operator import mul
from typing import NamedTuple

from cupola.runtime.device.interface import StepOutput
from cupola.runtime.engine.acceptance import Acceptance
from cupola.runtime.engine.proposers.proposer import NO_DRAFT, Context, Draft, Explorer, Proposer
from cupola.runtime.engine.request import Request, Sequence
from cupola.runtime.engine.step import Chunk, Step
from cupola.runtime.engine.step_costs import StepCosts
from cupola.runtime.engine.token_tree import TokenTree, choose_branch, num_alike
from cupola.runtime.errors import EngineError

FEW_ROWS = 16  # of a step, which CPUs multiply and attend to as they do one (`targets/cpu/attention/paged.py`)
MAX_DRAFT = FEW_ROWS - 1  # tokens of one sequence
FIRST_DRAFT = 4  # tokens at most, of a proposer whose drafts cost time, while it is not known how much
MIN_GAIN = 1.1  # by which tokens must come faster, as it is expected, for a draft to be brought into a step
HOPEFUL = 0.6  # drafted tokens a step that were right lately, from which on the model is not left to go on by itself
RECENT = 0.2  # the share of one step in that
FIRST_PROBE, LAST_PROBE = 16, 128  # steps without a draft after which one that costs time is made again, to learn whether it is worth it
# by now: the more, the oftener it was not
FEWER_AFTER = 4  # asks in a row of which nothing was used, after which a step without one lies between two, after twice as many two, …
MOST_BETWEEN = 3  # of those steps
LEVELS, GIVEN_WEIGHT = 8, 20.0  # of chances that proposers give; tokens of a level after which what came counts as much
OWN_WEIGHT = 4.0  # tokens of a level of a sequence, after which they count as much as all others
INSTEAD = 1 << 16  # stands for the evidence of a branch's first token that is not the trunk's
SHARE = 0.1  # of one step in the average of the host's seconds


class _Made(NamedTuple):
    """The drafts of a sequence, that which is expected to bring the most first, and how many tokens the sequence had."""

    num_known: int
    drafts: tuple[Draft, ...]

    @property
    def trunk(self) -> Draft:
        """The first draft, or none."""
        return self.drafts[0] if self.drafts else NO_DRAFT

    @property
    def branch(self) -> tuple[Draft, int] | None:
        """The first draft that says something else than the trunk at some token, and the number of that."""
        for draft in self.drafts[1:]:
            if (place := num_alike(self.trunk.token_ids, draft.token_ids)) < min(len(self.trunk.token_ids), len(draft.token_ids)):
                return draft, place
        return None


class Speculation:
    """Asks a proposer, and decides what of its drafts is used. For one model.

    Args:
        vocab_size: of the model.
        keeps_few: whether drafts may not bring a step above FEW_ROWS: on devices where rows among more have other bits.
        goes_back: whether the model carries a state, so that what came is computed again where a draft is wrong.
    """

    def __init__(self, proposer: Proposer, vocab_size: int, *, keeps_few: bool = False, goes_back: bool = False) -> None:
        self.proposer, self._vocab_size, self._keeps_few, self._goes_back = proposer, vocab_size, keeps_few, goes_back
        self.acceptance, self.costs = Acceptance(), StepCosts()
        self.calibration = Acceptance(GIVEN_WEIGHT, OWN_WEIGHT)  # by levels of the chances that a proposer itself gives its tokens
        self._drafting = StepCosts(in_proportion=True)  # of the proposer, by how many tokens it is asked for
        self._made: dict[Sequence, _Made] = {}
        self._host_seconds = 0.0  # of a step of the engine, beside those of the model and the proposer
        self._asking_seconds = 0.0
        self._num_right = 0.0  # drafted tokens a step and sequence, lately
        self._num_without, self._probe_after = 0, FIRST_PROBE  # steps of the model since a draft was made; of which the next one is a probe
        self._num_unused = self._num_to_pass = 0  # asks in a row of which nothing was used; the engine's steps until the next one

    def draft(self, running: SequenceOf[Sequence], max_steps: int) -> dict[Sequence, TokenTree]:
        """As `_draft`, which a proposer that is free spares while nothing of it is used; how long it takes counts as the engine's time."""
        if self._num_to_pass:
            self._num_to_pass -= 1
            return {}
        start = time.perf_counter()
        trees = self._draft(running, max_steps)
        if self.proposer.is_free:
            self._num_unused = 0 if trees else self._num_unused + 1
            self._num_to_pass = min(self._num_unused // FEWER_AFTER, MOST_BETWEEN)
            seconds = time.perf_counter() - start
            self._asking_seconds += SHARE * (min(seconds, 2 * self._asking_seconds or seconds) - self._asking_seconds)
        return trees

    def _draft(self, running: SequenceOf[Sequence], max_steps: int) -> dict[Sequence, TokenTree]:
        """The drafted tokens to bring into the next step, by sequence, if all running ones decode.

        Args:
            max_steps: of the model, which it could take at once without a draft.

        Raises:
            EngineError: the proposer gave what is no token.
        """
        self._learn()
        rooms = {sequence: room for sequence in running if (room := _room(sequence)) > 0}
        most_drafted, num_rows = MAX_DRAFT * len(rooms), sum(sequence.num_new_tokens for sequence in running)
        if self._keeps_few and num_rows <= FEW_ROWS:
            most_drafted = min(most_drafted, FEW_ROWS - num_rows)
        costs = self._costs(len(running), num_rows, most_drafted)
        if costs is None:
            return {}
        if isinstance(self.proposer, Explorer):
            return self._explore(rooms, most_drafted // len(rooms))
        beside = self._host_seconds + self._asking_seconds
        plain = costs[len(running)] + beside / max_steps
        costs = [seconds + beside for seconds in costs]
        most, least = (MAX_DRAFT, 0.0) if self.proposer.is_free else self._plan_length(list(rooms), len(running), costs, plain)
        if not most:
            return {}
        self._made = self._propose({sequence: min(most, room) for sequence, room in rooms.items()}, least)
        chances = [self._chances(sequence, made.trunk) for sequence, made in self._made.items()]
        lengths = choose_lengths(chances, costs, len(running), plain)
        expected = len(running) + sum(sum(draft[:length]) for draft, length in zip(chances, lengths, strict=True))
        used = {sequence: length for sequence, length in zip(self._made, lengths, strict=True) if length}
        return self._with_branches(used, expected, len(running) + sum(lengths), costs)

    def _costs(self, num_running: int, num_rows: int, most_drafted: int) -> list[float] | None:
        """Seconds of the next step by how many tokens it may bring, of the running sequences' `num_rows`; None while they aren't known."""
        costs = self.costs.table(num_rows + most_drafted) if most_drafted else None
        if costs is None:
            return None
        if self._goes_back:  # the rows of a draft come twice, as if each were wrong somewhere
            costs[num_rows + 1 :] = [2 * seconds - costs[num_rows + 1] for seconds in costs[num_rows + 1 :]]
        return costs[num_rows - num_running :]

    def hear(self, step: Step, output: StepOutput) -> None:
        """Lets a proposer that explores hear what is likeliest after drafted tokens; before their sequences have the new tokens."""
        if isinstance(self.proposer, Explorer) and any(chunk.draft for chunk in step.chunks):
            likeliest = output.argmax()[-1].tolist()
            for chunk in (chunk for chunk in step.chunks if chunk.draft):
                heard = likeliest[chunk.next_row : chunk.next_row + len(chunk.draft) + 1]
                self.proposer.hear(chunk.sequence.name, chunk.sequence.token_ids, chunk.draft, heard)

    def _explore(self, rooms: Mapping[Sequence, int], most: int) -> dict[Sequence, TokenTree]:
        """All that a proposer guesses, as far as there is room."""
        if not most:
            return {}
        self._made = self._propose({sequence: min(most, room) for sequence, room in rooms.items()})
        return {sequence: TokenTree(made.trunk.token_ids) for sequence, made in self._made.items() if made.trunk.token_ids}

    def _with_branches(
        self, lengths: Mapping[Sequence, int], expected: float, count: int, costs: SequenceOf[float]
    ) -> dict[Sequence, TokenTree]:
        """The trunks that are used, up to their lengths, with branches where these bring more tokens a second.

        Args:
            expected: tokens that a step with the trunks brings, of `count` that it computes.
            costs: seconds of a step by its tokens.
        """
        trees: dict[Sequence, TokenTree] = {}
        for sequence, length in lengths.items():
            made = self._made[sequence]
            trees[sequence] = tree = TokenTree(made.trunk.token_ids[:length])
            if (branch := made.branch) is not None and branch[1] < length:
                gains = self._branch_gains(sequence, made.trunk, *branch)
                if num_used := choose_branch(gains, expected, count, costs):
                    trees[sequence] = tree._replace(branches=(branch[0].token_ids[:num_used],))
                    expected, count = expected + sum(gains[:num_used]), count + 1 + num_used
        return trees

    def num_steps(self, max_steps: int) -> int:
        """How many steps the model may take by itself: while drafts are right, one, since the next draft may be, too."""
        return 1 if self._num_right > HOPEFUL or isinstance(self.proposer, Explorer) else max_steps

    def observe(self, step: Step, model_seconds: float, host_seconds: float) -> None:
        """Takes in how long a step took: the model for each of its own, and the engine beside it."""
        if any(not chunk.samples or _computes_prompt(chunk) for chunk in step.chunks):
            return
        self.costs.observe(len(step.batch.tokens), model_seconds)
        most = 2 * self._host_seconds or host_seconds  # something else may have run meanwhile
        self._host_seconds += (SHARE if self._host_seconds else 1) * (min(host_seconds, most) - self._host_seconds)
        self._num_without += step.num_steps
        num_right = sum(chunk.num_right for chunk in step.chunks if chunk.draft)
        self._num_right *= (1 - RECENT) ** step.num_steps
        self._num_right += RECENT * num_right / len(step.chunks)

    def forget(self, request: Request) -> None:
        """Drops what is known of a request that has ended."""
        self._learn()
        self._num_unused = self._num_to_pass = 0
        for sequence in request.sequences:
            self.proposer.forget(context_of(sequence, 1))

    def _propose(self, rooms: dict[Sequence, int], least: float = 0.0) -> dict[Sequence, _Made]:
        start = time.perf_counter()
        made = self.proposer.propose([self._context(sequence, room, least) for sequence, room in rooms.items()])
        if longest := max(len(draft.token_ids) for draft in made):
            self._drafting.observe(longest, time.perf_counter() - start)
        self._num_without = 0
        return {sequence: self._ordered(draft, sequence) for sequence, draft in zip(rooms, made, strict=True)}

    def _context(self, sequence: Sequence, room: int, least: float) -> Context:
        return context_of(sequence, room)._replace(least=least, chance=partial(self._chance, sequence.name))

    def _ordered(self, draft: Draft, sequence: Sequence) -> _Made:
        """A sequence's drafts, those first that are expected to bring the most."""
        drafts = [self._checked(one, sequence) for one in (draft, *draft.others)]
        if len(drafts) > 1:
            drafts = [one for one in drafts if one.token_ids]
            drafts.sort(key=lambda one: -sum(self._chances(sequence, one)))
        return _Made(len(sequence.token_ids), tuple(drafts))

    def _checked(self, draft: Draft, sequence: Sequence) -> Draft:
        """A draft up to a token that would end the sequence: nothing may follow it."""
        for token_id in draft.token_ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self._vocab_size:
                raise EngineError(f"a draft has the token id {token_id!r:.60}, which is none of 0 to {self._vocab_size - 1}")
        stops = sequence.request.spec.stop_token_ids
        token_ids = tuple(takewhile(lambda token_id: token_id not in stops, draft.token_ids))
        return Draft(token_ids, draft.evidence, chances=draft.chances[: len(token_ids)])

    def _plan_length(self, sequences: SequenceOf[Sequence], num_running: int, costs: SequenceOf[float], plain: float) -> tuple[int, float]:
        """How many tokens to ask a proposer for whose drafts cost time, 0 for none, and the chance below which a draft should end."""
        seconds = self._drafting.table(MAX_DRAFT) or [0.0] * (FIRST_DRAFT + 1)
        longest = min((len(costs) - 1 - num_running) // len(sequences), len(seconds) - 1)
        steps = [costs[num_running + length * len(sequences)] + seconds[length] for length in range(longest + 1)]
        gains = [sum(column) for column in zip(*(self._chances_alike(sequence, longest) for sequence in sequences), strict=True)]
        totals = list(accumulate(gains, initial=float(num_running)))
        best = max(range(longest + 1), key=lambda length: totals[length] / steps[length] if length else MIN_GAIN * num_running / plain)
        if not best:
            return self._probe(), 0.0
        self._probe_after = FIRST_PROBE
        if not self.proposer.doubts:
            return best, 0.0
        more = seconds[best] + max(0.0, steps[best] - seconds[best] - steps[0])
        return longest, totals[best] / steps[best] * more / (best * gains[0])  # a guess after one is right as often as the first

    def _probe(self) -> int:
        """One token now and then, where drafts are not worth it."""
        if self._num_without < self._probe_after:
            return 0
        self._probe_after = min(2 * self._probe_after, LAST_PROBE)
        return 1

    def _chances(self, sequence: Sequence, draft: Draft) -> list[float]:
        """The chance of each token of a draft, and of all before it, to be right."""
        if not draft.chances:
            return self._chances_alike(sequence, len(draft.token_ids), draft.evidence)
        return list(accumulate(map(partial(self._chance, sequence.name), draft.chances), mul))

    def _chance(self, name: str, given: float) -> float:
        """The chance of a token to which its proposer gives that one."""
        return self.calibration.chance(name, _level(given), prior=given)

    def _chances_alike(self, sequence: Sequence, length: int, evidence: int = 0) -> list[float]:
        """As `_chances`, of tokens that have the same evidence."""
        return list(accumulate(repeat(self.acceptance.chance(sequence.name, evidence), length), mul))

    def _branch_gains(self, sequence: Sequence, trunk: Draft, branch: Draft, place: int) -> list[float]:
        """Tokens that each token of a branch is expected to bring, which differs from the trunk from token `place` on."""
        chance = self.acceptance.chance(sequence.name, trunk.evidence) ** place
        chance *= self.acceptance.chance(sequence.name, INSTEAD)
        after = self._chances_alike(sequence, len(branch.token_ids) - place - 1, branch.evidence)
        return [0.0] * place + [chance, *(chance * more for more in after)]

    def _learn(self) -> None:
        """Holds the drafts that were made against what came."""
        all_made, self._made = self._made, {}
        for sequence, made in all_made.items():
            for draft in made.drafts:
                came = sequence.token_ids[made.num_known : made.num_known + len(draft.token_ids)]
                num_right = num_alike(draft.token_ids, came)
                if came and draft.token_ids:
                    self.acceptance.observe(sequence.name, draft.evidence, num_right, num_right < len(came))
                    for place, chance in enumerate(draft.chances[: len(came)][: num_right + 1]):
                        self.calibration.observe(sequence.name, _level(chance), int(place < num_right), place == num_right)
            if (branch := made.branch) is not None:
                came = sequence.token_ids[made.num_known :]
                draft, place = branch
                if len(came) > place <= num_alike(draft.token_ids, came):
                    is_right = came[place] == draft.token_ids[place]
                    self.acceptance.observe(sequence.name, INSTEAD, int(is_right), not is_right)


def context_of(sequence: Sequence, most: int) -> Context:
    """A sequence as proposers see it."""
    spec = sequence.request.spec
    return Context(sequence.name, sequence.token_ids, len(spec.prompt_token_ids), spec.cache_salt, most, sequence)


def _computes_prompt(chunk: Chunk) -> bool:
    """True if it has several tokens, other than the few of a state that went back."""
    return chunk.end - chunk.start > 1 and (
        chunk.start < len(chunk.sequence.request.spec.prompt_token_ids) or chunk.end - chunk.start > FEW_ROWS
    )


def _level(chance: float) -> int:
    """The level of a chance that a proposer gives."""
    return int(LEVELS * chance)


def choose_lengths(chances: SequenceOf[SequenceOf[float]], costs: SequenceOf[float], num_plain: int, plain: float) -> list[int]:
    """How much of each draft to use, so that the most tokens a second are expected.

    Args:
        chances: of each draft, each token's to be right with all before it, which never rises.
        costs: seconds of a step by its tokens, up to the most that it may have.
        num_plain: tokens of a step without drafts.
        plain: seconds of such a step, of which the model may take several at once.
    """
    ordered = sorted(((chance, i) for i, draft in enumerate(chances) for chance in draft), key=lambda pair: -pair[0])
    best, best_rate, total = 0, MIN_GAIN * num_plain / plain, float(num_plain)
    for count, (chance, _) in enumerate(ordered[: len(costs) - 1 - num_plain], 1):
        total += chance
        if total / costs[num_plain + count] > best_rate:
            best, best_rate = count, total / costs[num_plain + count]
    lengths = [0] * len(chances)
    for _, i in ordered[:best]:
        lengths[i] += 1
    return lengths


def _room(sequence: Sequence) -> int:
    """How many drafted tokens a sequence could use: none before the first token, which may be several sequences', none at its end."""
    request = sequence.request
    if not sequence.decoding or not sequence.num_output_tokens or request.wants_scores or len(sequence.samplers) > 1:
        return 0
    return request.spec.max_length - len(sequence.token_ids) - 1
