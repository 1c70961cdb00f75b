"""The targets by name: `cpu` is this machine, `cpu:<isa>` one instruction set.

`cpu:batch-invariant` is this machine without what makes a token's logits depend on the rows beside it: batch, chunks, caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cupola.runtime.errors import OptionError
from cupola.targets.cpu.isa import ISA, ISAS, runs_here

if TYPE_CHECKING:
    from cupola.targets.base import Target

_HERE = {
    "cpu": "the best of the below that this machine has",
    "cpu:batch-invariant": "the best of them whose answers never depend, by a bit, on what else a step holds",
}


def target_names() -> tuple[str, ...]:
    """Every name that `get_target` takes."""
    return (*_HERE, *(f"cpu:{isa.name}" for isa in ISAS))


def list_targets() -> tuple[tuple[str, str, bool], ...]:
    """For `cupola targets`: (name, description, whether this machine runs it)."""
    return (
        *((name, description, _best(name) is not None) for name, description in _HERE.items()),
        *((f"cpu:{isa.name}", isa.description, runs_here(isa)) for isa in ISAS),
    )


def get_targets(names: str) -> tuple[Target, ...]:
    """The targets of a list such as "cpu:avx512vnni,cpu:avx2".

    Raises:
        OptionError: as `get_target`; one comes twice.
    """
    targets = tuple(map(get_target, names.split(",")))
    if len({target.spec.device for target in targets}) < len(targets):
        raise OptionError(f"{names!r} has one twice", field="target", fix="name each once")
    return targets


def get_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        OptionError: no such target, or one of this machine, which none of the instruction sets fits.
    """
    isas = {f"cpu:{isa.name}": isa for isa in ISAS}
    found = _best(name) if name in _HERE else isas.get(name)
    if found is None:
        problem = "none of the known instruction sets fits this machine" if name in _HERE else f"{name!r} is not a target"
        raise OptionError(problem, field="target", fix=f"one of {', '.join(target_names())}")
    from cupola.targets.cpu.target import cpu_target  # here, so that names are known without tvm, seconds of start-up

    return cpu_target(found)


def _best(name: str) -> ISA | None:
    """What a name of `_HERE` stands for."""
    return next((isa for isa in ISAS if runs_here(isa) and (name == "cpu" or isa.batch_invariant)), None)
