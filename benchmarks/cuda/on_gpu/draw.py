"""The plot of a report, as SVG, so that it needs nothing but Python: for each test a bar for each contestant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

COLORS = ("#d1495b", "#edae49", "#00798c", "#8d99ae", "#66a182")
LEFT, WIDTH, BAR, GAP = 110, 420, 16, 14  # pixels


def draw(report: Mapping[str, Any]) -> str:
    """An SVG document."""
    rates = {name: {line["test"]: line for line in lines if "test" in line} for name, lines in report["contestants"].items()}
    tests = list(dict.fromkeys(test for lines in rates.values() for test in lines))
    parts, y = [_text(8, 20, f"{report['gpu'] or report['architecture']}: tokens a second, and the share of the bound", 14)], 40
    for test in tests:
        found = {name: lines[test] for name, lines in rates.items() if test in lines}
        highest = max(line["tokens_per_second"] for line in found.values())
        parts.append(_text(8, y + BAR, test, 12))
        for i, (name, line) in enumerate(found.items()):
            length, share = WIDTH * line["tokens_per_second"] / highest, line.get("share_of_bound")
            color = COLORS[list(rates).index(name) % len(COLORS)]
            parts.append(f'<rect x="{LEFT}" y="{y + i * BAR + 4}" width="{length:.1f}" height="{BAR - 3}" fill="{color}"/>')
            label = f"{name}: {line['tokens_per_second']:,.0f}" + (f", {share:.0%}" if share is not None else "")
            parts.append(_text(LEFT + length + 6, y + i * BAR + BAR, label, 11))
        y += len(found) * BAR + GAP
    size = f'width="{LEFT + WIDTH + 200}" height="{y + 10}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n' + "\n".join(parts) + "\n</svg>\n"


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(text)}</text>'
