"""How child interpreters are started."""

from __future__ import annotations

import subprocess

import pytest

from cupola.runtime.environment import interpreter


@pytest.mark.parametrize(
    ("hidden", "arguments"),
    [
        ("typer.py", ("-m", "cupola", "compile", "--help")),
        ("msgspec.py", ("-m", "cupola.runtime.server.engine_process")),
        ("cupola.py", ("-m", "cupola.runtime.structured.grammar_worker")),
        ("pip.py", ("-m", "pip", "--version")),
    ],
)
def test_a_file_of_the_current_folder_is_never_run(tmp_path, hidden, arguments):
    """A file that comes with a model's folder must not stand in for a module of that name."""
    (tmp_path / hidden).write_text("open('OWNED', 'w').close()\nraise SystemExit(7)\n")
    done = subprocess.run([*interpreter(), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert not (tmp_path / "OWNED").exists() and done.returncode != 7, done.stderr
