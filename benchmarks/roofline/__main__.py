"""The bound of an 8 B model on the GPUs that there are targets for, from the plans alone: `docs/roofline.md`.

    python benchmarks/roofline

`llama-3.1-8b.json` is that model's shape, as its config.json has it; no weights are needed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cupola
from cupola.runtime.artifact.read import read_plan
from cupola.runtime.errors import OptionError
from cupola.runtime.measure.bound import StepWork, decode_work, prompt_work
from cupola.runtime.measure.machines import MACHINES, Machine
from cupola.targets.base import Target
from cupola.targets.entry import BUILT, TargetEntry
from cupola.targets.native.code import Code
from cupola.targets.registry import get_target, register_target, target_names

HERE = Path(__file__).parent
CONFIG, TABLE = HERE / "llama-3.1-8b.json", HERE.parents[1] / "docs" / "roofline.md"
QUANTS = ("bf16", "w8a16", "w4a16")
CONTEXT, PROMPT, STREAMS = 1024, 4096, (1, 8, 32)

_HEAD = f"""# Llama 3.1 8B on paper

What a step moves, launches and multiplies, from the plan that is executed and the cost of its kernels; made by `make roofline`, with no
weights and no GPU. `cupola inspect ARTIFACT --roofline h100` says the same of any artifact, kernel by kernel; a model's `config.json`
alone can be compiled for it. **Nothing here was measured.**

- *Bound*: all bytes at the memory's published bandwidth, or all operations at the matrix units' published peak for 16 bits, whichever
  takes longer. No program with these weights and this K/V cache can be faster.
- *Model*: kernel after kernel, each at its own bound in the arithmetic that it multiplies in, and then a launch of the machine's. *Reach*
  is the bound's share of that time. Real kernels add what the model does not know: memory is not read at its published rate (90 to 95 %
  are usual), a kernel's first bytes take a microsecond to come, small kernels do not fill a GPU, and what a kernel reads again counts once.

Machines and the sources of their figures stand in `runtime/measure/machines.py`. Streams have {CONTEXT} tokens each; K/V are bf16 or f16.

"""


@dataclass(frozen=True)
class Case:
    """A machine, and an artifact that was compiled for it: its decode steps by streams, and a prompt."""

    machine: Machine
    quant: str
    decode: dict[int, StepWork]
    prompt: StepWork


def cases(config: Path, machines: Iterable[Machine], quants: Iterable[str] = QUANTS) -> Iterator[Case]:
    """Plans for each target and scheme, in the order of machines; targets of one kind, which mostly agree on weights, are traced once."""
    listed, kinds = list(machines), dict[str, list[str]]()
    for name in dict.fromkeys(machine.target for machine in listed):
        kinds.setdefault(name.partition(":")[0], []).append(name)
    planned: dict[tuple[str, str], tuple[dict[int, StepWork], StepWork]] = {}
    for names, quant in itertools.product(kinds.values(), list(quants)):
        print(f"{', '.join(names)}: {quant}", file=sys.stderr, flush=True)
        try:
            found = works_of(config, names, quant)
        except OptionError:  # they lay weights out differently
            found = {name: works for each in names for name, works in works_of(config, [each], quant).items()}
        planned |= {(name, quant): works for name, works in found.items()}
    for machine in listed:
        yield from (Case(machine, quant, *planned[machine.target, quant]) for name, quant in planned if name == machine.target)


def plan_only(name: str) -> str:
    """The name of a target that plans as that one does, and has nothing compiled: no compiler for it need be here."""
    own = f"plan-of-{name}"
    if own not in target_names():

        def make() -> Target:
            return replace(get_target(name), code=lambda *_: Code((), ()), link=lambda objects, sources, output: output.write_bytes(b""))

        register_target(TargetEntry(own, f"plans of {name}", make, lambda: False, BUILT))
    return own


def works_of(config: Path, targets: Sequence[str], quant: str) -> dict[str, tuple[dict[int, StepWork], StepWork]]:
    """Of each target the decode steps by number of streams, and the prompt, in one step. Raises OptionError if targets disagree."""
    with TemporaryDirectory() as folder:
        artifact = cupola.compile(config, target=",".join(map(plan_only, targets)), quant=quant, out=Path(folder) / "artifact")
        manifest, found = artifact.manifest, {}
        context, prompt = min(CONTEXT, manifest.model.context_length), min(PROMPT, manifest.model.context_length)
        for name, library in zip(targets, manifest.libraries, strict=True):
            plan = read_plan(artifact.path / library.plan, manifest.function("forward"))
            decode = {streams: decode_work(manifest, plan, streams, context) for streams in STREAMS}
            found[name] = decode, prompt_work(manifest, plan, prompt, prompt)
        return found


def as_markdown(found: Iterable[Case], missing: Iterable[Machine]) -> str:
    """The page."""
    listed, absent = list(found), list(missing)
    lines = [
        _HEAD + "## A decode step of one stream\n",
        "| machine | target | weights as | MB read and written | launches | bound, tokens/s | model, tokens/s | of bandwidth |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_decode_row(case) for case in listed),
        f"\n## Tokens a second of {' and '.join(map(str, STREAMS[1:]))} streams, and of a prompt of {PROMPT} tokens\n",
        "| machine | weights as | " + " | ".join(f"{n} streams: bound | model" for n in STREAMS[1:]) + " | prompt: bound | model | reach |",
        "| --- | --- |" + " ---: | ---: |" * len(STREAMS[1:]) + " ---: | ---: | ---: |",
        *(_row(case) for case in listed),
    ]
    if absent:
        names = ", ".join(f"{machine.name} (`{machine.target}`)" for machine in absent)
        lines.append(f"\nThere is no target yet for {names}.")
    return "\n".join(lines) + "\n"


def _decode_row(case: Case) -> str:
    machine, work = case.machine, case.decode[1]
    rates = f"{1 / work.bound_seconds(machine):.0f} | {1 / work.seconds(machine):.0f}"
    share = work.memory_seconds(machine) / work.seconds(machine)
    moved = f"{work.cost.num_bytes / 1e6:.0f} | {work.cost.num_launches}"
    return f"| {machine.name} | `{machine.target}` | {case.quant} | {moved} | {rates} | {share:.0%} |"


def _row(case: Case) -> str:
    machine = case.machine
    works = [*(case.decode[streams] for streams in STREAMS[1:]), case.prompt]
    rates = [f"{work.num_tokens / seconds:.0f}" for work in works for seconds in (work.bound_seconds(machine), work.seconds(machine))]
    reach = case.prompt.bound_seconds(machine) / case.prompt.seconds(machine)
    return f"| {machine.name} | {case.quant} | {' | '.join(rates)} | {reach:.0%} |"


def main() -> None:
    """Writes the page."""
    known = target_names()
    found = cases(CONFIG, [machine for machine in MACHINES.values() if machine.target in known])
    TABLE.write_text(as_markdown(found, [m for m in MACHINES.values() if m.target not in known]), encoding="utf-8")
    print(f"wrote {TABLE}", file=sys.stderr)


if __name__ == "__main__":
    main()
