"""The peers' environments and model files, made once under build/peers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from contest import FILES, VENVS, File

from cupola import CupolaError
from cupola.compiler.sources.builtin import bring_builtin

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "peers"
Progress = Callable[[str], None]


_failures: dict[str, str] = {}  # why an environment could not be made


class SetupError(Exception):
    """An environment or a file could not be made; the text says why."""


def run_logged(command: list[str], log: Path, variables: tuple[tuple[str, str], ...] = ()) -> None:
    """Runs a command, its output in `log`. Raises SetupError with the log's last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | dict(variables), check=False)
    if done.returncode:
        raise SetupError(f"{last_line(log)} (see {log.relative_to(BUILD.parents[1])})")


def last_line(log: Path) -> str:
    """The last line that a command printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def python_of(venv: str) -> str:
    """The interpreter of an environment; cupola's is the one that runs this."""
    return sys.executable if venv == "cupola" else str(BUILD / venv / "bin" / "python")


def make_venv(name: str, progress: Progress) -> None:
    """Makes an environment unless it is there with just these requirements; tries but once. Raises SetupError."""
    if name == "cupola":
        return
    if name in _failures:
        raise SetupError(_failures[name])
    try:
        _install(name, progress)
    except SetupError as error:
        _failures[name] = str(error)
        raise


def _install(name: str, progress: Progress) -> None:
    venv, stamp = VENVS[name], BUILD / name / "installed.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == repr(venv):
        return
    progress(f"setting up {name}: {', '.join(venv.requirements)}")
    run_logged([sys.executable, "-P", "-m", "venv", "--clear", str(BUILD / name)], BUILD / "logs" / f"{name}-venv.log")
    pip = [python_of(name), "-m", "pip", "install", "--disable-pip-version-check", *venv.options, *venv.requirements]
    run_logged(pip, BUILD / "logs" / f"{name}-pip.log", venv.variables)
    stamp.write_text(repr(venv), encoding="utf-8")


def make_file(name: str, progress: Progress, *, reuse: bool) -> Path:
    """The path of a model file, made if need be; artifacts are compiled anew unless `reuse`. Raises SetupError."""
    if name == "packaged":
        try:
            return bring_builtin("smollm2", progress)
        except CupolaError as error:
            raise SetupError(str(error)) from None
    file, path = FILES[name], BUILD / "models" / name
    source = make_file(file.source, progress, reuse=True)
    if path.exists() and (reuse or file.venv != "cupola"):
        return path
    make_venv(file.venv, progress)
    progress(f"making {name} from {source.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{name}")
    run_logged(_command(file, source, path if file.venv == "cupola" else unfinished), BUILD / "logs" / f"{name}.log")
    if file.venv != "cupola":
        unfinished.replace(path)
    return path


def _command(file: File, source: Path, target: Path) -> list[str]:
    if file.venv == "cupola":
        return [sys.executable, "-P", "-m", "cupola", "compile", str(source), "--out", str(target), *file.arguments]
    return [python_of(file.venv), str(HERE / "convert.py"), file.action, str(source), str(target), *file.arguments]
