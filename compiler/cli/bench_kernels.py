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
    if as_json:
        return json.dumps({"roofline": asdict(roofline), "profiles": [_as_dict(profile, roofline) for profile in profiles]})
    return "\n\n".join([_machine(roofline), *(_show(profile, roofline) for profile in profiles)])


def _machine(roofline: Roofline) -> str:
    peaks = ", ".join(f"multiplies {name} at {peak / 1e9:.0f} Gop/s" for name, peak in roofline.operations_per_second.items())
    return f"With {roofline.threads} threads the machine reads memory at {roofline.bytes_per_second / 1e9:.1f} GB/s, {peaks}."


def _title(test: SpeedTest) -> str:
    """What is looked at: a prompt, or one step of generation."""
    if test.kind == "pp":
        return test.name
    streams = f" × {test.num_streams}" if test.num_streams > 1 else ""
    return f"a step of tg{streams}" + (f" @ d{test.depth}" if test.depth else "")


def _show(profile: Profile, roofline: Roofline) -> str:
    tokens = profile.test.num_tokens * profile.test.num_streams
    title = f"{_title(profile.test)}: {1e3 * profile.seconds:.2f} ms, {tokens / profile.seconds:.1f} tokens/s"
    rows = [_row(kernel, profile, roofline) for kernel in profile.kernels]
    least = sum(kernel.bound(roofline)[1] for kernel in profile.kernels)
    rows.append(_sum_row("all kernels", profile.kernel_seconds, profile.seconds, f"{least / profile.kernel_seconds:.0%}"))
    rows.append(_sum_row("around them: the virtual machine", profile.model_seconds - profile.kernel_seconds, profile.seconds))
    rows.append(_sum_row("scheduling and sampling", profile.seconds - profile.model_seconds, profile.seconds))
    rows.append(_sum_row("whole step" if profile.test.kind == "tg" else "whole prompt", profile.seconds, profile.seconds))
    return f"{title}\n\n{table(HEAD, rows)}"


def _row(kernel: KernelTime, profile: Profile, roofline: Roofline) -> list[str]:
    name, least = kernel.bound(roofline)
    seconds = max(kernel.seconds, 1e-9)  # of what is nearly nothing, less than nothing may be measured
    return [
        kernel.name,
        str(kernel.num_calls),
        f"{1e6 * kernel.seconds:.1f}",
        f"{kernel.seconds / profile.seconds:.1%}",
        f"{kernel.num_bytes / 1e6:.2f}",
        f"{kernel.num_bytes / seconds / 1e9:.1f}",
        f"{kernel.num_operations / 1e6:.1f}",
        f"{kernel.num_operations / seconds / 1e9:.1f}",
        name,
        f"{least / seconds:.0%}" if least <= seconds else "> 100%",
    ]


def _sum_row(name: str, seconds: float, whole: float, of_roofline: str = "") -> list[str]:
    return [name, "", f"{1e6 * seconds:.1f}", f"{seconds / whole:.1%}", *[""] * (len(HEAD) - 5), of_roofline]


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
