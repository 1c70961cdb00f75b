"""A project for Android Studio and Gradle: an app that answers prompts by an artifact's libraries for Android, in Java over cupola's C."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from cupola.compiler.package.archive import Member, write_folder
from cupola.compiler.package.contents import Contents, choose_contents
from cupola.compiler.package.runtime_files import VERSION
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import HOST, TOKENIZER, LibrarySpec
from cupola.runtime.errors import OptionError
from cupola.runtime.machine import architecture, system_of
from cupola.targets.native.systems import ANDROID, PHONES

FETCHED = {"ai.djl.huggingface:tokenizers, ai.djl.android:tokenizer-native (fetched by Gradle)": "Apache-2.0"}
_ABIS = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}  # https://developer.android.com/ndk/guides/abis
_TEMPLATES = Path(__file__).with_name("android")
_MAIN, _JAVA = "app/src/main", "app/src/main/java/org/cupola/app"
# Files of that folder, and their places in the project.
_PLACES = {
    "README.md": "", "settings.gradle.kts": "", "build.gradle.kts": "", "gradle.properties": "",
    "AndroidManifest.xml": _MAIN, "CMakeLists.txt": f"{_MAIN}/cpp", "jni.c": f"{_MAIN}/cpp",
    "MainActivity.java": _JAVA, "Model.java": _JAVA, "Native.java": _JAVA, "Prompt.java": _JAVA,
}  # fmt: skip
_SOURCES = ("cupola.h", "internal.h", "fast_cores.c", "features.c", "json.c", "model.c", "session.c", "system_posix.c")


@dataclass(frozen=True)
class PromptFrame:
    """The text before and after a prompt, as the model's chat template has it, special tokens and all."""

    before: str
    after: str


def choose_android(artifact: Artifact, *, name: str | None, version: str, license: str) -> Contents:
    """The artifact with its libraries for Android's CPUs alone.

    Raises:
        OptionError: there is none, or no tokenizer; or as `choose_contents`.
    """
    libraries = [library.target for library in artifact.manifest.libraries]
    if not any(system_of(target.triple) == ANDROID.name and target.kind == HOST for target in libraries):
        problem = f"has no library for Android's CPUs, but for {', '.join(target.name for target in libraries)}"
        fix = f"make one: cupola compile SOURCE --target {PHONES}"
        raise OptionError(problem, file=artifact.path, field="app", fix=fix)
    if not artifact.lists(TOKENIZER):
        raise OptionError("has no tokenizer, and an app takes text", file=artifact.path, field="app", fix="compile a source that has one")
    return choose_contents(artifact, name=name, version=version, systems=(ANDROID.name,), license=license)


def write_android_project(contents: Contents, out: Path, frame: PromptFrame | None) -> tuple[Path, list[Member]]:
    """Writes the project, a new folder in `out`; returns it, and its files. Raises OptionError if it can't be written."""
    facts = _facts(contents, frame)
    members = [Member(_place(name), _filled(name, facts)) for name in _PLACES]
    members.append(Member("app/build.gradle.kts", _filled("app.gradle.kts", facts)))
    sources = resources.files("cupola.runtime.embed")
    members += [Member(f"{_MAIN}/cpp/cupola/{name}", (sources / name).read_bytes()) for name in _SOURCES]
    code = {library.file: library for library in contents.manifest.libraries}
    for member in contents.artifact_members(""):
        file = member.name.removeprefix("/")
        place = f"{_MAIN}/jniLibs/{_abi(code[file])}" if file in code else f"{_MAIN}/assets/artifact"
        members.append(Member(f"{place}/{file}", member.content))
    members += contents.licenses("licenses")
    folder = out / f"{contents.name}-android"
    write_folder(folder, members)
    return folder, members


def _facts(contents: Contents, frame: PromptFrame | None) -> dict[str, str]:
    """Words of the templates, and what stands in for them."""
    libraries = contents.manifest.libraries
    template = "It is the model's chat template, as it was rendered when the project was made."
    about = template if frame else "There is none: texts are continued."
    return {
        "NAME": contents.name, "VERSION": contents.version, "CUPOLA": VERSION, "ABOUT": about,
        "MODEL": f"{contents.manifest.source.name}, {contents.manifest.scheme}",
        "SIZE": f"{sum(file.num_bytes for file in contents.manifest.files) / 1e6:.1f} MB with the libraries",
        "ABIS": ", ".join(json.dumps(abi) for abi in dict.fromkeys(map(_abi, libraries))),
        "LIBRARIES": ", ".join(f"`{library.file}` for {library.target.name}" for library in libraries),
        "BEFORE": json.dumps(frame.before if frame else ""), "AFTER": json.dumps(frame.after if frame else ""),
        "HAS_SPECIAL_TOKENS": "true" if frame else "false",
    }  # fmt: skip


def _place(name: str) -> str:
    return f"{_PLACES[name]}/{name}".removeprefix("/")


def _filled(name: str, facts: dict[str, str]) -> bytes:
    text = (_TEMPLATES / name).read_text(encoding="utf-8")
    for word, fact in facts.items():
        text = text.replace(f"@{word}@", fact)
    return text.encode()


def _abi(library: LibrarySpec) -> str:
    return _ABIS[architecture(library.target.triple.partition("-")[0])]
