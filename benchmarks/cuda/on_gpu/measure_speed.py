"""Tokens a second of models of Llama 3.1 8B's shape, with weights made at random on the GPU; beside torch with CUDA graphs, where that is.

    python measure_speed.py [--machine h100] [--out speed.json]

Every contestant has a process of its own, whose memory is the whole GPU's, and writes what it has measured line by line: one that fails
or takes too long leaves the others' figures. Of a decode step all of it is timed, with its uploads and the wait for its tokens; of a prompt
the one step that computes it. Shares are of the machine's published bandwidth and matrix peak (`cupola/runtime/measure/machines.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from draw import draw
from package import HERE, choose_folder, gpu_name

from cupola.runtime.measure.machines import MACHINES, Machine

STREAMS, PROMPTS, CONTEXT = (1, 8, 32), (512, 4096), 512
TINY_STREAMS, TINY_PROMPTS, TINY_CONTEXT = (1, 2), (5,), 8  # of a dry run
# By words of NVIDIA's names, the longer ones first.
NAMES = {
    "H200": "h200", "H100": "h100", "A100": "a100", "B200": "b200", "L40S": "l40s", "RTX 5090": "rtx5090", "RTX 4090": "rtx4090",
    "RTX 3090": "rtx3090", "L4": "l4",
}  # fmt: skip


def find_machine(name: str) -> Machine | None:
    """The machine that NVIDIA's name of a GPU means, if its figures are known."""
    found = next((machine for words, machine in NAMES.items() if words in name), None)
    return None if found is None else MACHINES[found]


def contest(command: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a process writes until it ends; if it fails or takes longer than `seconds`, a last one says so."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, complaint = process.communicate(timeout=seconds)
        problem = f"ended with {process.returncode}: {(complaint.strip().splitlines() or [''])[-1]}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        out, complaint = process.communicate()
        problem = f"took more than {seconds:.0f} seconds"
    # A line that the end of the process cut off is none.
    yield from (json.loads(line) for line in out.splitlines(keepends=True) if line.startswith("{") and line.endswith("}\n"))
    if problem:
        yield {"problem": problem}


def with_shares(line: dict[str, Any], machine: Machine | None) -> dict[str, Any]:
    """A measurement, with its shares of what the machine can do at best."""
    if machine is not None and "seconds" in line and "num_bytes" in line:
        line["share_of_bandwidth"] = line["num_bytes"] / machine.bytes_per_second / line["seconds"]
        line["share_of_matrix_peak"] = line["num_operations"] / machine.matrix / line["seconds"]
        line["share_of_bound"] = max(line["share_of_bandwidth"], line["share_of_matrix_peak"])
    return line


def show(name: str, line: Mapping[str, Any]) -> str:
    """A line for people."""
    if "problem" in line:
        return f"{name:22} {line['problem']}"
    if "test" not in line:
        return f"{name:22} {json.dumps(line)[:110]}"
    shares = (
        f"{line['share_of_bandwidth']:6.1%} of bandwidth {line['share_of_matrix_peak']:6.1%} of peak" if "share_of_bound" in line else ""
    )
    warning = "  (logits are NaN)" if line.get("has_nan") else ""
    return f"{name:22} {line['test']:14} {1e3 * line['seconds']:9.3f} ms {line['tokens_per_second']:10.1f} tokens/s  {shares}{warning}"


def main() -> int:
    """Measures, writes JSON and a plot, and gives the number of contestants with a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "speed.json", help="the results, as JSON; a plot comes beside them")
    parser.add_argument("--machine", choices=MACHINES, help="which one shares are of, if its name does not tell")
    parser.add_argument("--seconds", type=float, default=500, help="for all of it")
    options = parser.parse_args()
    folder, gpu, end = choose_folder(), gpu_name(), time.monotonic() + options.seconds
    machine = MACHINES[options.machine] if options.machine else find_machine(gpu)
    is_dry = folder.name == "softgpu"
    streams, prompts, context = (TINY_STREAMS, TINY_PROMPTS, TINY_CONTEXT) if is_dry else (STREAMS, PROMPTS, CONTEXT)
    asked = ["--streams", *map(str, streams), "--prompts", *map(str, prompts), "--context", str(context)]
    models = sorted(model for model in (folder / "models").iterdir() if (model / "manifest.json").is_file())
    commands = {f"cupola {model.name}": [str(HERE / "cupola_model.py"), str(model), *asked] for model in models}
    commands["torch bf16"] = [str(HERE / "torch_model.py"), str(HERE / "config.json"), *asked]
    report: dict[str, Any] = {"gpu": gpu, "machine": machine.name if machine else None, "architecture": folder.name, "context": context}
    report["contestants"] = {}
    for left, (name, command) in zip(range(len(commands), 0, -1), commands.items(), strict=True):
        seconds = max(10.0, (end - time.monotonic()) / left)
        lines = [with_shares(line, machine) for line in contest([sys.executable, *command], seconds)]
        report["contestants"][name] = lines
        options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
        print("\n".join(show(name, line) for line in lines), flush=True)
    options.out.with_suffix(".svg").write_text(draw(report), encoding="utf-8")
    print(f"{options.out}, {options.out.with_suffix('.svg')}")
    return sum(any("problem" in line for line in lines) for lines in report["contestants"].values())


if __name__ == "__main__":
    sys.exit(main())
