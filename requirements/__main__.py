"""Pins what `cupola serve` needs at run time, with hashes, for images: writes serve.txt and xgrammar.txt beside this file.

    make requirements

What is asked for stands in pyproject.toml: the runtime's dependencies and the extra `serve`. pip resolves it, with its own settings and
for the Python that runs this, and then says for each platform which wheel it would install. A package that has none for one is an error.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path

from cupola.runtime.structured.grammar import XGRAMMAR_VERSION

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBC_MINORS = (28, 27, 26, 24, 17, 12, 5)  # whose wheels run on glibc 2.28, the oldest that all of them run on
HEAD = """# {what}
# Written by `make requirements`. Hashes are those of wheels for CPython {pythons} on Linux with glibc 2.28 or later, {machines}.
#
#     pip install {options}--require-hashes -r requirements/{name}
#
"""


def main() -> None:
    """Writes both files."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    pins = [f"{name}=={version}" for name, version, _hash in would_install(wanted)]
    grammar = f"xgrammar=={XGRAMMAR_VERSION}"
    hashes: dict[str, set[str]] = defaultdict(set)
    for machine in MACHINES:
        for python in PYTHONS:
            print(f"wheels for CPython {python} on {machine}")
            for name, version, digest in would_install([*pins, grammar], *platform_options(machine, python)):
                hashes[f"{name}=={version}"].add(digest)
    write("serve.txt", "What `cupola serve` needs at run time.", {pin: found for pin, found in hashes.items() if pin != grammar})
    what = "Structured output's library, without the packages that its own asks for: cupola needs none of them."
    write("xgrammar.txt", what, {grammar: hashes[grammar]}, "--no-deps ")


def platform_options(machine: str, python: str) -> list[str]:
    """pip's options for one platform's wheels, of the packages named and not of what they depend on."""
    platforms = [*(f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS), f"manylinux2014_{machine}", f"linux_{machine}"]
    options = ["--no-deps", "--only-binary=:all:", "--target", "unused", "--python-version", python]
    return [*options, *(option for platform in platforms for option in ("--platform", platform))]


def would_install(requirements: list[str], *options: str) -> list[tuple[str, str, str]]:
    """The packages that pip would install: normalized name, version and SHA-256 of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--dry-run", "--ignore-installed", "--report", str(report), *options, *requirements], check=True)
        packages = json.loads(report.read_text("utf-8"))["install"]
    return [
        (
            re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower(),
            package["metadata"]["version"],
            package["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for package in packages
    ]


def write(name: str, what: str, hashes: dict[str, set[str]], options: str = "") -> None:
    """Writes one file of pins, each with its hashes."""
    head = HEAD.format(what=what, pythons=", ".join(PYTHONS), machines=" and ".join(MACHINES), options=options, name=name)
    pins = [" \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in sorted(found))]) for pin, found in sorted(hashes.items())]
    (HERE / name).write_text(head + "\n".join(pins) + "\n", "utf-8")


if __name__ == "__main__":
    main()
