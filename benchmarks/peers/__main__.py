"""cupola beside its peers, on the same model, in turns: a table, a JSON file and a plot.

    python benchmarks/peers [--engines cupola-w4a8,llama.cpp-q4_0] [--workloads prefill,decode] [--rounds 5] [--threads 2] [--json]
    python benchmarks/peers --isa avx2    # engines held to a lesser instruction set: results/peers-avx2.md

The first time it sets up the peers under build/peers, which takes a while. Time on a machine that does nothing else.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer
from contest import ENTRANTS, ISAS, WORKLOADS
from machine import describe_machine, load_per_core, num_cores, read_gigabytes_per_second
from report import Json, as_json, as_markdown
from turns import Plan, set_up, take_turns
from venvs import BUILD, HERE, SetupError, make_venv, python_of, run_logged

MEMORY_MEGABYTES, MODEL_MEGABYTES = 512, 90

MODEL = "SmolLM2-135M-Instruct"
RESULTS = HERE.parent / "results"
_BUSY = 0.5  # processes a core that make times doubtful


def progress(line: str) -> None:
    """Says a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def chosen(names: str | None, known: Collection[str], option: str) -> tuple[str, ...]:
    """The names of a comma-separated list, or all. Raises typer.BadParameter."""
    wanted = tuple(names.split(",")) if names else tuple(known)
    if unknown := [name for name in wanted if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(known)}", param_hint=option)
    return wanted


def main(
    engines: Annotated[str | None, typer.Option(help="Some of the engines, separated by commas.", show_default=False)] = None,
    workloads: Annotated[str | None, typer.Option(help="Some of the workloads, separated by commas.", show_default=False)] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times to measure each.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Threads for every engine; 0 is the number of cores.")] = 0,
    isa: Annotated[str, typer.Option(help=f"Hold engines to an instruction set: {', '.join(ISAS)}.", show_default="the machine's")] = "",
    results: Annotated[Path, typer.Option(help="The folder for peers.md, peers.json and peers.png, or peers-ISA.…")] = RESULTS,
    reuse: Annotated[bool, typer.Option("--reuse", help="Take cupola's artifacts as they are, instead of compiling them anew.")] = False,
    to_stdout: Annotated[bool, typer.Option("--json", help="Print the JSON, instead of the table.")] = False,
) -> None:
    """Measure engines side by side."""
    chosen(isa or None, ISAS, "--isa")
    names = chosen(engines, [name for name, entrant in ENTRANTS.items() if entrant.isa == isa], "--engines")
    works = chosen(workloads, WORKLOADS, "--workloads")
    plan = Plan(names, works, rounds, threads or num_cores(), reuse)
    paths, records = set_up(plan, progress)
    about: Json = {"model": MODEL, "isa": isa, "rounds": rounds, "threads": plan.threads, "date": datetime.date.today().isoformat()}
    about |= describe_machine()
    about["load_per_core_before"] = round(load_per_core(), 2)
    if load_per_core() > _BUSY:
        progress(f"the machine is busy ({load_per_core():.1f} processes a core): these times will say little")
    before = measure_reading(plan.threads)
    take_turns(plan, paths, records, progress)
    about["read_gigabytes_per_second"] = {"before": before, "after": measure_reading(plan.threads)}
    text, table = json.dumps(as_json(records, about), indent=1) + "\n", as_markdown(records, works, describe_run(about))
    write(results, f"peers-{isa}" if isa else "peers", text, table)
    print(text if to_stdout else table)
    if not any(record.rates for record in records.values()):
        raise typer.Exit(1)


def measure_reading(threads: int) -> Json:
    """GB/s, by the megabytes that are read: more than caches hold, and as many as a small model has, which a large last cache may keep."""
    return {str(megabytes): read_gigabytes_per_second(threads, megabytes) for megabytes in (MEMORY_MEGABYTES, MODEL_MEGABYTES)}


def describe_run(about: Json) -> Sequence[str]:
    """The lines under the table."""
    read = about["read_gigabytes_per_second"]
    assert isinstance(read, dict)
    memory, model = (
        [f"{speeds[str(size)]:.1f}" for speeds in read.values() if speeds[str(size)]] for size in (MEMORY_MEGABYTES, MODEL_MEGABYTES)
    )
    sets = about["instruction_sets"]
    assert isinstance(sets, list)
    return [
        f"{about['model']}, {about['threads']} threads, median of {about['rounds']}, in turns, on {about['date']}",
        f"{about['processor']}, {about['cores']} cores ({', '.join(sets)}), {about['system']}",
        f"memory is read at {' and '.join(memory)} GB/s (before and after), {MODEL_MEGABYTES} MB time and again at {' and '.join(model)}"
        if memory
        else "memory bandwidth: not measured (no C compiler)",
        f'made by `make bench-peers ARGS="--isa {about["isa"]}"`' if about["isa"] else "made by `make bench-peers`",
    ]


def write(folder: Path, stem: str, text: str, table: str) -> None:
    """Writes the three files, which are named after `stem`; without matplotlib, two."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(text, encoding="utf-8")
    (folder / f"{stem}.md").write_text(table, encoding="utf-8")
    try:
        make_venv("plot", progress)
        draw = [str(HERE / "plot.py"), str(folder / f"{stem}.json"), str(folder / f"{stem}.png")]
        run_logged([python_of("plot"), *draw], BUILD / "logs" / "plot.log")
    except SetupError as error:
        progress(f"no plot: {error}")


if __name__ == "__main__":
    typer.run(main)
