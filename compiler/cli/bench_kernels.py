"""`cupola bench --kernels`: where a step's time goes, and how near each kernel is to what the machine can do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import cupola
from cupola.compiler.cli.lists import table
from cupola.compiler.cli.progress import console_progress

if TYPE_CHECKING:
    from cupola import Benchmark, KernelTime, Profile, Roofline, SpeedTest

HEAD = ["kernel", "calls", "µs", "of step", "MB", "GB/s", "Mop", "Gop/s", "bound by", "of roofline"]


def unlike(tests: Sequence[SpeedTest]) -> list[SpeedTest]:
    """The tests, those of generation once for each depth and number of streams: of them a few steps are looked at."""
    return list(dict.fromkeys(replace(test, num_tokens=1) if test.kind == "tg" else test for test in tests))


def show_kernels(benchmark: Benchmark, tests: Sequence[SpeedTest], repeats: int, as_json: bool) -> str:
    """Profiles every test and returns the text, or JSON."""
    progress = console_progress()
    with progress.stage("the machine"):
        roofline = cupola.measure_roofline(benchmark)
    profiles = []
    for test in tests:
        with progress.stage(_title(test)):
            benchmark.warm_up(test)
            profiles.append(cupola.profile(benchmark, test, repeats))
            roofline = roofline.best(cupola.measure_roofline(benchmark))
    if as_json:
        return json.dumps({"roofline": asdict(roofline), "profiles": [_as_dict(profile, roofline) for profile in profiles]})
    return "\n\n".join([_machine(roofline), *(_show(profile, roofline) for profile in profiles)])


def _machine(roofline: Roofline) -> str:
    peaks = ", ".join(f"multiplies {name} at {peak / 1e9:.0f} Gop/s" for name, peak in roofline.operations_per_second.items())
    return f"With {roofline.threads} threads the machine reads memory at {roofline.bytes_per_second / 1e9:.1f} GB/s, {peaks}."


def _title(test: SpeedTest) -> str:
    """The table's title: the prompt, or the step of generation, that was measured."""
    if test.kind == "pp":
        return test.name
    streams = f" × {test.num_streams}" if test.num_streams > 1 else ""
    return f"a step of tg{streams}" + (f" @ d{test.depth}" if test.depth else "")


def _show(profile: Profile, roofline: Roofline) -> str:
    tokens = profile.test.num_tokens * profile.test.num_streams
    whole, around = profile.seconds, profile.model_seconds - profile.kernel_seconds
    rows = [[kernel.name, str(kernel.num_calls), *_cells(kernel.seconds, whole, [kernel], roofline)] for kernel in profile.kernels]
    rows.append(["all kernels", "", *_cells(profile.kernel_seconds, whole, profile.kernels, roofline)])
    rows.append(["around them", "", *_cells(around, whole, [], roofline)])
    rows.append(["scheduling and sampling", "", *_cells(whole - profile.model_seconds, whole, [], roofline)])
    rows.append(["whole step" if profile.test.kind == "tg" else "whole prompt", "", *_cells(whole, whole, profile.kernels, roofline)])
    return f"{_title(profile.test)}: {1e3 * whole:.2f} ms, {tokens / whole:.1f} tokens/s\n\n{table(HEAD, rows)}"


def _cells(seconds: float, whole: float, kernels: Sequence[KernelTime], roofline: Roofline) -> list[str]:
    """The columns of HEAD from microseconds on, of what `kernels` do in `seconds`."""
    times = [f"{1e6 * seconds:.1f}", f"{seconds / whole:.1%}"]
    if not kernels:
        return [*times, *[""] * (len(HEAD) - 4)]
    seconds = max(seconds, 1e-9)  # of what takes nearly no time, less than none may be measured
    num_bytes, num_operations = sum(kernel.num_bytes for kernel in kernels), sum(kernel.num_operations for kernel in kernels)
    bounds = [kernel.bound(roofline) for kernel in kernels]
    share = sum(least for _, least in bounds) / seconds
    amounts = [f"{num_bytes / 1e6:.2f}", f"{num_bytes / seconds / 1e9:.1f}", f"{num_operations / 1e6:.1f}"]
    name = bounds[0][0] if len(bounds) == 1 else ""
    return [*times, *amounts, f"{num_operations / seconds / 1e9:.1f}", name, f"{share:.0%}" if share <= 1 else "> 100%"]


def _as_dict(profile: Profile, roofline: Roofline) -> dict[str, object]:
    kernels = []
    for kernel in profile.kernels:
        bound, least = kernel.bound(roofline)
        kernels.append({**asdict(kernel), "bound_by": bound, "roofline_seconds": least})
    return {
        "test": _title(profile.test),
        **asdict(profile.test),
        "seconds": profile.seconds,
        "model_seconds": profile.model_seconds,
        "kernel_seconds": profile.kernel_seconds,
        "kernels": kernels,
    }
