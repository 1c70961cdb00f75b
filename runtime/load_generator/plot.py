"""A load test as a picture: how latencies are distributed, and what went on over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cupola.runtime.errors import OptionError
from cupola.runtime.load_generator.metrics import MS_PER_S, Metrics, concurrency, samples_s, tokens_per_second
from cupola.runtime.load_generator.record import RequestRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(file: Path) -> None:
    """Raises OptionError if `file` can't be drawn: better before a long test than after it."""
    if file.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{file.name!r:.80} is no picture", field="plot", fix=f"give a name that ends in {', '.join(SUFFIXES)}")
    if not file.absolute().parent.is_dir():
        raise OptionError("the folder is not there", file=file, field="plot", fix="make it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OptionError("needs matplotlib", field="plot", fix="pip install 'cupola[bench]'") from None


def draw(records: Sequence[RequestRecord], metrics: Metrics, title: str, file: Path) -> None:
    """Four panels: distributions of TTFT and of TPOT and ITL, tokens a second and requests in flight over time."""
    check_plot(file)
    from matplotlib.figure import Figure

    done = [record for record in records if record.error is None]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(
        f"{title}: {metrics.num_completed} requests, {metrics.num_failed} failed, {metrics.output_throughput:.0f} output tokens a second"
    )
    (first, each), (tokens, flight) = figure.subplots(2, 2)
    samples = samples_s(done)
    _distribution(first, {"TTFT": samples["ttft"]}, "time to first token (ms)")
    _distribution(each, {"TPOT": samples["tpot"], "ITL": samples["itl"]}, "time for a token (ms)")
    tokens.stairs(tokens_per_second(done), fill=True, alpha=0.6)
    tokens.set(xlabel="seconds", ylabel="output tokens a second", ylim=(0, None))
    flight.step(*concurrency(done), where="post")
    flight.set(xlabel="seconds", ylabel="requests in flight", ylim=(0, None))
    figure.savefig(file, dpi=120)


def _distribution(axes: Axes, samples: dict[str, list[float]], label: str) -> None:
    """Which share of the samples took at most so long."""
    for name, seconds in samples.items():
        values = np.sort(seconds) * MS_PER_S
        axes.plot(values, np.arange(1, len(values) + 1) / max(1, len(values)), label=name, drawstyle="steps-post")
    axes.set(xlabel=label, ylabel="share of samples", xlim=(0, None), ylim=(0, 1.02))
    axes.legend(loc="lower right")
