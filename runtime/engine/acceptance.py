"""The chance that a drafted token is right, learned from what came."""

from __future__ import annotations

from collections import OrderedDict

PRIOR = 0.5  # of a kind of evidence that is new
MEMORY, OWN_MEMORY = 0.995, 0.95  # what is left of experience after one more draft
MAX_SEQUENCES = 4096


class _Tally:
    """How many tokens were right, and how many there were, the older the less."""

    __slots__ = ("num_right", "total")

    def __init__(self) -> None:
        self.num_right = self.total = 0.0

    def add(self, num_right: int, total: int, memory: float) -> None:
        self.num_right = self.num_right * memory + num_right
        self.total = self.total * memory + total


class Acceptance:
    """Estimates by the evidence that a draft has, for all sequences together and for each one.

    A token counts if all before it in its draft were right: later ones say nothing.

    Args:
        prior_weight: drafted tokens after which all sequences' experience counts as much as what is assumed before.
        own_weight: drafted tokens of its own after which a sequence's experience counts as much as all others'.
    """

    def __init__(self, prior_weight: float = 2.0, own_weight: float = 2.0) -> None:
        self._prior_weight, self._own_weight = prior_weight, own_weight
        self._all: dict[int, _Tally] = {}
        self._own: OrderedDict[tuple[str, int], _Tally] = OrderedDict()

    def observe(self, name: str, evidence: int, num_right: int, was_wrong: bool) -> None:
        """Takes in a draft of the sequence `name` whose first tokens were right, and then perhaps one wrong."""
        own = self._own.setdefault((name, evidence), _Tally())
        own.add(num_right, num_right + was_wrong, OWN_MEMORY)
        self._all.setdefault(evidence, _Tally()).add(num_right, num_right + was_wrong, MEMORY)
        if len(self._own) > MAX_SEQUENCES:
            self._own.popitem(last=False)

    def chance(self, name: str, evidence: int, prior: float = PRIOR) -> float:
        """The chance of each token of a draft, if those before it are right; `prior` is assumed of evidence that is new."""
        shared = self._all.get(evidence) or _Tally()
        chance = (shared.num_right + prior * self._prior_weight) / (shared.total + self._prior_weight)
        own = self._own.get((name, evidence)) or _Tally()
        return (own.num_right + chance * self._own_weight) / (own.total + self._own_weight)
