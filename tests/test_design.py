"""DESIGN.md's decisions have their form and their number, and the files that it and the notes point to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
TEXTS = ("DESIGN.md", "targets/cpu/NOTES.md", "runtime/NOTES.md")
PARTS = ("Decision", "Why", "Evidence", "Cost")
MAX_WORDS = 80
PATH = re.compile(r"`([\w.-]+/(?:[\w./-]*(?:\.py|\.md|\.jsonl|\.c|/))?)`")


def decisions(text: str) -> list[str]:
    """The paragraphs below `## Decisions` that come after its introduction."""
    section = text.partition("\n## Decisions\n")[2].partition("\n## ")[0]
    begin = section.find("\n**D")
    assert begin >= 0, "no decision is found"
    return section[begin:].strip().split("\n\n")


def faults(paragraphs: list[str]) -> list[str]:
    """Faults in the form of decisions, in order."""
    found = []
    for number, paragraph in enumerate(paragraphs, 1):
        words = paragraph.split()
        if not paragraph.startswith(f"**D{number}. "):
            found.append(f"D{number} is expected where {' '.join(words[:3])!r} stands")
        title, *texts = re.split(r"\*(?:Decision|Why|Evidence|Cost):\*", paragraph)
        if not re.fullmatch(r"\*\*D\d+\. .*[^.\s]\.\*\*", " ".join(title.split())):
            found.append(f"D{number}: a title is bold, ends with a full stop, and comes right before the decision")
        if tuple(re.findall(r"\*(\w+):\*", paragraph)) != PARTS:
            found.append(f"D{number}: its parts are not {', '.join(PARTS)}, once each and in order")
        if not all(text.strip() for text in texts):
            found.append(f"D{number}: a part is empty")
        if len(words) > MAX_WORDS:
            found.append(f"D{number}: {len(words)} words, and {MAX_WORDS} are the most")
    return found


def missing_paths(text: str, root: Path = ROOT) -> list[str]:
    """Files and folders that a text names in back quotes and the repository has not."""
    return [path for path in PATH.findall(text) if not (root / path).exists() or path.endswith("/") != (root / path).is_dir()]


def decision(number: int, *, parts: tuple[str, ...] = PARTS, num_words: int = 1, title: str = "A short title.") -> str:
    """A decision each of whose parts is of so many words."""
    return " ".join([f"**D{number}. {title}**", *(f"*{part}:* {' '.join(['word'] * num_words)}" for part in parts)])


def test_decisions_have_their_form() -> None:
    assert faults(decisions(DESIGN)) == []


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_text_names_exists(name: str) -> None:
    assert missing_paths((ROOT / name).read_text(encoding="utf-8")) == []


def test_good_decisions_have_no_faults() -> None:
    listed = "\n\n".join(decision(n).replace(" *Why", "\n*Why") for n in (1, 2, 3))
    text = f"# Title\n\n## Decisions\n\nAn introduction.\n\n{listed}\n\n## Another section\n\nSome text.\n"
    assert len(decisions(text)) == 3
    assert faults(decisions(text)) == []
    assert faults([decision(1, num_words=18)]) == []  # 80 words: 4 of the title, 4 names of parts


@pytest.mark.parametrize(
    ("paragraphs", "expected"),
    [
        ([decision(1), decision(3)], "D2 is expected"),
        ([decision(1), decision(1)], "D2 is expected"),
        ([decision(2), decision(1)], "D1 is expected"),
        ([decision(1), "Some words between decisions."], "D2 is expected"),
        ([decision(1, parts=("Decision", "Why", "Evidence"))], "D1: its parts"),
        ([decision(1, parts=("Why", "Decision", "Evidence", "Cost"))], "D1: its parts"),
        ([decision(1, parts=(*PARTS, "Cost"))], "D1: its parts"),
        ([decision(1, parts=(*PARTS, "Note"))], "D1: its parts"),
        ([decision(1, num_words=0)], "D1: a part is empty"),
        ([decision(1, num_words=19)], "D1: 84 words"),
        ([decision(1, title="A title")], "D1: a title"),
        ([decision(1).replace("*Decision", "words *Decision")], "D1: a title"),
    ],
)
def test_a_bad_decision_is_found(paragraphs: list[str], expected: str) -> None:
    assert [fault for fault in faults(paragraphs) if fault.startswith(expected)]


def test_missing_files_and_folders_are_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").touch()
    text = "`room/`, `room/file.py` and `/v1/responses`, `a / b`, `file.py`, `room/file` are no faults, nor is room/gone.py without quotes."
    assert missing_paths(text, tmp_path) == []
    wrong = ["room/gone.py", "gone/file.md", "gone/", "room/gone/", "room/gone.jsonl", "room/gone.c", "room/file.py/"]
    assert missing_paths(" ".join(f"`{path}`" for path in wrong), tmp_path) == wrong
