"""`cupola package`: an artifact with its runtime, for machines on which nothing of cupola is installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.cold_start import NUM_TOKENS, ColdStart, measure_cold_start
from cupola.compiler.cli.package_app import APPS, package_app
from cupola.compiler.package.archive import Member
from cupola.compiler.package.contents import FOLDER, Contents, choose_contents
from cupola.compiler.package.runtime_files import ROOT, requirements
from cupola.compiler.package.wheel import write_wheel
from cupola.compiler.package.zip_folder import write_zip_folder
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.errors import OptionError

Write = Callable[[Contents, Path], tuple[Path, list[Member]]]
WAYS: dict[str, Write] = {"wheel": write_wheel, "zip": write_zip_folder}

Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write to; files get the names that they must have.")]
Wheel = Annotated[bool, typer.Option("--wheel", help="Make a wheel, which pip installs: a command, and a package to import (the default).")]
Zip = Annotated[bool, typer.Option("--zip", help="Make a zip file with a folder that Python runs, without installing it.")]
Name = Annotated[str | None, typer.Option("--name", help="The package's name (default: the artifact's folder's).", show_default=False)]
Version = Annotated[str, typer.Option("--package-version", help="The package's version.")]
Systems = Annotated[
    str | None,
    typer.Option("--os", help="Take the libraries for these operating systems alone, with commas between.", show_default=False),
]
Architectures = Annotated[
    str | None, typer.Option("--arch", help="Take those for these machines alone, such as x86_64,aarch64.", show_default=False)
]
License = Annotated[
    Path | None,
    typer.Option("--license", help="The model's licence, a text with its name in the first line, if its source states none."),
]
App = Annotated[
    str | None,
    typer.Option("--app", help=f"Make an app's project instead, to be built elsewhere: {', '.join(APPS)}.", show_default=False),
]
Measure = Annotated[bool, typer.Option("--cold-start/--no-cold-start", help="Time a new process's first answer, if one runs here.")]


@dataclass(frozen=True)
class Packaged:
    """A package that was made: its file, the bytes that are inside once it is unpacked, what it needs, and how long it takes to start."""

    kind: str
    file: str
    num_bytes: int
    artifact_bytes: int
    runtime_bytes: int
    other_bytes: int
    libraries: tuple[str, ...]
    licenses: dict[str, str]
    requires: tuple[str, ...]
    cold_start: ColdStart | None


def package(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder.", show_default=False)],
    out: Out = Path(),
    wheel: Wheel = False,
    zip_file: Zip = False,
    name: Name = None,
    version: Version = "1.0",
    os: Systems = None,
    arch: Architectures = None,
    license: License = None,
    measure: Measure = True,
    app: App = None,
    as_json: p.Json = False,
) -> None:
    """Put an artifact and what runs it into a package, for machines that have Python and nothing of cupola; or into an app's project."""
    if app is not None:
        refused = (("wheel", wheel), ("zip", zip_file), ("os", os), ("arch", arch))
        if field := next((field for field, value in refused if value), None):
            raise OptionError("goes not with --app", field=field, fix="make the one, then the other")
        made_app = package_app(app, Artifact.open(artifact), out, name=name, version=version, license=_license(license))
        typer.echo(json.dumps({"packages": [asdict(made_app)]}) if as_json else made_app.text())
        return
    contents = choose_contents(
        Artifact.open(artifact), name=name, version=version, systems=_split(os), architectures=_split(arch), license=_license(license)
    )
    asked = [kind for kind, is_asked in (("wheel", wheel), ("zip", zip_file)) if is_asked] or ["wheel"]
    made = []
    for kind in asked:
        file, members = WAYS[kind](contents, out)
        made.append(_describe(kind, file, contents, members, measure=measure))
    if as_json:
        typer.echo(json.dumps({"packages": [asdict(one) for one in made]}))
        return
    for one in made:
        _show(one, measured=measure)


def _describe(kind: str, file: Path, contents: Contents, members: Sequence[Member], *, measure: bool) -> Packaged:
    sizes = {FOLDER: 0, ROOT: 0, "": 0}
    top = "" if kind == "wheel" else f"{contents.name}-{contents.version}/"
    for member in members:
        part = member.name.removeprefix(f"{top}{contents.name}/").partition("/")[0]
        sizes[part if part in sizes else ""] += member.num_bytes
    installed = [Member(member.name.removeprefix(top), member.content) for member in members]
    return Packaged(
        kind=kind,
        file=str(file),
        num_bytes=file.stat().st_size,
        artifact_bytes=sizes[FOLDER],
        runtime_bytes=sizes[ROOT],
        other_bytes=sizes[""],
        libraries=tuple(f"{library.target.device} ({library.target.triple})" for library in contents.manifest.libraries),
        licenses={"cupola": "Apache-2.0", contents.manifest.source.name: contents.license_name},
        requires=tuple(requirements()),
        cold_start=measure_cold_start(contents, installed) if measure else None,
    )


def _show(made: Packaged, *, measured: bool) -> None:
    typer.echo(f"{made.file}: {made.num_bytes / 1e6:.1f} MB")
    typer.echo(
        f"  inside      the artifact {made.artifact_bytes / 1e6:.1f} MB, the runtime {made.runtime_bytes / 1e6:.2f} MB, "
        f"other {made.other_bytes / 1e6:.2f} MB"
    )
    typer.echo(f"  runs on     {', '.join(made.libraries)}")
    typer.echo(f"  needs       {', '.join(made.requires)}")
    typer.echo(f"  licences    {', '.join(f'{what}: {license}' for what, license in made.licenses.items())}")
    if made.cold_start is not None:
        seconds = f"{made.cold_start.later:.2f} s, {made.cold_start.first:.2f} s right after it is installed"
        typer.echo(f"  cold start  {seconds}: a process with an answer of {NUM_TOKENS} tokens")
    elif measured:
        typer.echo("  cold start  not measured: no library inside runs on this machine")


def _split(given: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (given or "").split(",") if part.strip())


def _license(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise OptionError(f"can't be read: {reason}", file=file, field="license", fix="give a text file") from None
    if not text.strip():
        raise OptionError("is empty", file=file, field="license", fix="give its name in the first line, and its text")
    return text
