"""The licence that a source states, and what becomes of it in an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupola.compiler.artifact_writer import write_texts
from cupola.compiler.sources import open_source
from cupola.compiler.sources.licenses import folder_license, gguf_license
from cupola.runtime.artifact.manifest import LICENSE


@pytest.mark.parametrize(
    ("card", "text", "found"),
    [
        (None, None, ""),
        ("# A model\nlicense: mit\n", None, ""),
        ("---\nlicense: apache-2.0\ntags: []\n---\nlicense: mit\n", None, "apache-2.0\n"),
        ('---\nlicense: "mit"\n---\n', "MIT License\n\nAs is.\n", "mit\nMIT License\n\nAs is.\n"),
        ("---\nlicense: other\nlicense_name: own\nlicense_link: https://x\n---\n", None, "other\nown\nhttps://x\n"),
        ("---\nlicense_name: own\n---\n", None, "own\n"),
        (None, "Apache License\n", "Apache License\n"),
    ],
)
def test_a_folder(tmp_path: Path, card: str | None, text: str | None, found: str) -> None:
    for name, content in (("README.md", card), ("LICENSE", text)):
        if content is not None:
            (tmp_path / name).write_text(content)
    assert folder_license(tmp_path) == found


def test_a_folder_without_readable_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    (tmp_path / "LICENSE").symlink_to("/etc/hostname")
    assert folder_license(tmp_path) == ""


def test_a_file() -> None:
    assert gguf_license({"general.license": "gemma", "general.license.link": "https://x"}) == "gemma\nhttps://x\n"
    assert gguf_license({"general.license": 3}) == gguf_license({}) == ""


def test_it_goes_into_the_artifact(tmp_path: Path) -> None:
    write_texts(tmp_path, open_source("smollm2"))
    assert (tmp_path / LICENSE).read_text() == "apache-2.0\n"
