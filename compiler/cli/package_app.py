"""`cupola package --app`: a project of an app, which is built where its system's tools are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

import cupola
from cupola.compiler.package.android_project import FETCHED, PromptFrame, choose_android, write_android_project
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import CHAT_TEMPLATE
from cupola.runtime.errors import InputError, OptionError, UnsupportedError

APPS = ("android",)
_MARK = "[[the prompt]]"
_WITHOUT = {"ios": "no --os makes libraries for iOS yet", "macos": "docs/embedding-in-an-app.md has what Swift needs"}


@dataclass(frozen=True)
class PackagedApp:
    """A project that was made: its folder, and the bytes of what is inside."""

    kind: str
    folder: str
    num_bytes: int
    artifact_bytes: int
    library_bytes: int
    other_bytes: int
    libraries: tuple[str, ...]
    licenses: dict[str, str]
    has_chat_template: bool

    def text(self) -> str:
        """The same for people."""
        lines = (
            f"{self.folder}: {self.num_bytes / 1e6:.1f} MB",
            f"  inside      weights and tokenizer {self.artifact_bytes / 1e6:.1f} MB, libraries {self.library_bytes / 1e6:.2f} MB, "
            f"sources and licences {self.other_bytes / 1e6:.2f} MB",
            f"  runs on     {', '.join(self.libraries)}",
            "  needs       Android's SDK and NDK and Gradle to build; README.md says what of it was tried",
            f"  licences    {', '.join(f'{what}: {license}' for what, license in self.licenses.items())}",
            "  cold start  not measured: nothing of Android runs here; the app shows its own",
        )
        return "\n".join(lines)


def package_app(app: str, artifact: Artifact, out: Path, *, name: str | None, version: str, license: str) -> PackagedApp:
    """Writes the project of that kind.

    Raises:
        UnsupportedError, OptionError: there is no such kind, or the artifact has no library for it.
    """
    if app in _WITHOUT:
        raise UnsupportedError(f"is {app!r}: {_WITHOUT[app]}", field="app", fix=f"take {' or '.join(APPS)}")
    if app not in APPS:
        raise OptionError(f"is {app!r:.60}", field="app", fix=f"give {' or '.join(APPS)}")
    contents = choose_android(artifact, name=name, version=version, license=license)
    frame = _frame(artifact)
    folder, members = write_android_project(contents, out, frame)
    sizes = {"assets": 0, "jniLibs": 0, "": 0}
    for member in members:
        sizes[next((part for part in sizes if f"/main/{part}/" in member.name), "")] += member.num_bytes
    return PackagedApp(
        kind=app,
        folder=str(folder),
        num_bytes=sum(sizes.values()),
        artifact_bytes=sizes["assets"],
        library_bytes=sizes["jniLibs"],
        other_bytes=sizes[""],
        libraries=tuple(f"{library.target.name} ({library.target.triple})" for library in contents.manifest.libraries),
        licenses={"cupola": "Apache-2.0", contents.manifest.source.name: contents.license_name, **FETCHED},
        has_chat_template=frame is not None,
    )


def _frame(artifact: Artifact) -> PromptFrame | None:
    """The text that the chat template puts around a prompt; None, and a note, where that can't be told here."""
    if not artifact.lists(CHAT_TEMPLATE):
        return None
    try:
        text = cupola.LLM(artifact, max_num_seqs=1).render_chat([{"role": "user", "content": _MARK}])
    except InputError as error:
        typer.echo(f"note: the app continues texts, without the chat template, which can't be rendered here: {error.message}", err=True)
        return None
    before, found, after = text.partition(_MARK)
    if not found or _MARK in after:
        typer.echo("note: the app continues texts, since the chat template does not keep a prompt as it is", err=True)
        return None
    return PromptFrame(before, after)
