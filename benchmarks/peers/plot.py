"""Draws a results file: a panel a workload, a bar an engine. Runs where matplotlib is: python plot.py peers.json peers.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OWN, PEER = "#d1495b", "#8d99ae"


def draw(source: str, target: str) -> None:
    """Writes the plot; whiskers go from the lowest to the highest of the rounds."""
    results = json.loads(Path(source).read_text(encoding="utf-8"))
    engines = {name: engine for name, engine in results["engines"].items() if any(engine["rates"].values())}
    works = results["workloads"]
    figure, axes = plt.subplots(1, len(works), figsize=(3.2 * len(works) + 2, 0.34 * len(engines) + 1.6), sharey=True, squeeze=False)
    for axis, (work, title) in zip(axes[0], works.items(), strict=True):
        samples = [engine["rates"].get(work) or [0.0] for engine in engines.values()]
        medians = [engine["median"].get(work) or 0.0 for engine in engines.values()]
        below = [m - min(s) for m, s in zip(medians, samples, strict=True)]
        above = [max(s) - m for m, s in zip(medians, samples, strict=True)]
        colors = [PEER if engine["is_peer"] else OWN for engine in engines.values()]
        bars = axis.barh(list(engines), medians, xerr=[below, above], color=colors, error_kw={"lw": 0.8})
        axis.bar_label(bars, [f"{m:,.0f}" if m else "" for m in medians], fontsize=8, padding=4)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.22)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"{results['model']}, tokens a second, {results['threads']} threads, median of {results['rounds']}", fontsize=11)
    figure.tight_layout()
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    draw(*sys.argv[1:])
