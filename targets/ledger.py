"""Ledgers: what each kernel of the catalogue costs on each architecture, read from its code, in a file beside it.

A ledger in the repository must be what the kernels give, figure by figure, better ones too: a line that nobody renewed would let the next
change be worse up to it. `make ledger` renews them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, int]
Ledger: TypeAlias = dict[tuple[str, str], Figures]  # by kernel and architecture
_COMPILER = "compiler"
_VERDICTS = ("worse", "mixed", "gone", "new", "better")


def read_ledger(file: Path, architecture: str = "architecture") -> Ledger:
    """The ledger as the file has it; empty if there is none. `architecture` is that column's name."""
    return {(entry.pop("kernel"), entry.pop(architecture)): entry for entry in _lines(file) if _COMPILER not in entry}


def read_compiler(file: Path) -> str:
    """The compiler that made the file, and its version, such as "nvcc 13.0.88"; "" if it does not say."""
    return next((str(line[_COMPILER]) for line in _lines(file) if _COMPILER in line), "")


def write_ledger(ledger: Ledger, file: Path, architecture: str = "architecture", compiler: str = "") -> None:
    """A line for every kernel and architecture, in the order of the ledger, perhaps below one that names the compiler."""
    lines = [json.dumps({"kernel": kernel, architecture: name, **figures}) for (kernel, name), figures in ledger.items()]
    head = [json.dumps({_COMPILER: compiler})] if compiler else []
    file.write_text("".join(f"{line}\n" for line in (*head, *lines)), encoding="utf-8")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def differences(before: Ledger, now: Ledger) -> list[str]:
    """A line of text for every line of the ledger that is not as it was, the worse ones first; "mixed" are those with more and less."""
    texts = {}
    for key in before.keys() | now.keys():
        if before.get(key) != now.get(key):
            verdict, changes = _change(before.get(key), now.get(key))
            texts[verdict, *key] = f"{verdict}: {key[0]}, {key[1]}: {changes}"
    return [texts[key] for key in sorted(texts, key=lambda key: (_VERDICTS.index(key[0]), key))]


def _change(before: Mapping[str, int] | None, now: Mapping[str, int] | None) -> tuple[str, str]:
    if before is None or now is None:
        return ("new", "not in the ledger") if before is None else ("gone", "not in the catalogue")
    changed = {name: (before.get(name, 0), now.get(name, 0)) for name in {**before, **now} if before.get(name) != now.get(name)}
    grown = {new > old for old, new in changed.values()}
    verdict = "mixed" if len(grown) == 2 else "worse" if True in grown else "better"
    return verdict, ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
