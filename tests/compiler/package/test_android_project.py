"""Android projects: what is inside, C and Java that compile, and Java that runs over this machine's library.

Gradle, Kotlin's compiler for its scripts, and Android's SDK are not here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import cupola
from cupola.compiler.cli.app import run
from cupola.compiler.package.android_project import PromptFrame, choose_android, write_android_project
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import MANIFEST, DeviceSpec, FileSpec, LibrarySpec
from cupola.runtime.errors import OptionError
from cupola.targets.native.link import compiler_for
from cupola.targets.native.systems import LINUX
from tests.compiler.package.android_stubs import STUBS
from tests.runtime.tiny_artifact import make_artifact

JAVA = "app/src/main/java/org/cupola/app"
CPP = "app/src/main/cpp"
FRAME = PromptFrame('<|user|>"\\\n', "\nbot:é")
ANSWER = """
package org.cupola.app;

import java.io.File;

public final class Answer {
    public static void main(String[] words) {
        try (Model model = new Model(new File(words[0]), 2)) {
            int[] prompt = new int[words.length - 2];
            for (int i = 0; i < prompt.length; ++i) prompt[i] = Integer.parseInt(words[i + 2]);
            model.savePower(true);
            System.out.println(model.target() + " " + model.context());
            model.answer(prompt, Integer.parseInt(words[1]), token -> {
                System.out.println(token);
                return true;
            });
        }
    }
}
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """With libraries for Android beside this machine's; their code was not compiled."""
    made = make_artifact(tmp_path_factory.mktemp("android") / "tiny-model")
    (library,), files, more = made.manifest.libraries, [], []
    for name, machine, features in (("dotprod", "aarch64", ("asimddp",)), ("neon", "aarch64", ()), ("avx2", "x86_64", ("avx2",))):
        (made.path / f"lib.{name}-android.so").write_bytes(b"\x7fELF")
        target = DeviceSpec(f"cpu:{name}@android", "cpu", name, f"{machine}-unknown-linux-android", features)
        more.append(LibrarySpec(f"lib.{name}-android.so", library.plan, target))
        files.append(FileSpec(f"lib.{name}-android.so", 4, hashlib.sha256(b"\x7fELF").hexdigest()))
    manifest = replace(made.manifest, libraries=(library, *more), files=(*made.manifest.files, *files))
    (made.path / MANIFEST).write_text(manifest.to_json())
    return Artifact(made.path, manifest)


@pytest.fixture(scope="module")
def project(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    contents = choose_android(artifact, name=None, version="1.2", license="MIT\n\nThe text.")
    folder, members = write_android_project(contents, tmp_path_factory.mktemp("project"), FRAME)
    written = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert written == {member.name: member.num_bytes for member in members}
    return folder


def java_home() -> Path:
    """The JDK's folder; skips where there is none."""
    javac = shutil.which("javac")
    if javac is None:
        pytest.skip("there is no JDK")
    home = Path(javac).resolve().parents[1]
    if not (home / "include/jni.h").exists():
        pytest.skip("the JDK has no jni.h")
    return home


def test_everything_is_in_its_place(project: Path, artifact: Artifact) -> None:
    assert project.name == "tiny_model-android"
    main = project / "app/src/main"
    libraries = {str(file.relative_to(main / "jniLibs")) for file in (main / "jniLibs").rglob("*.so")}
    assert libraries == {"arm64-v8a/lib.dotprod-android.so", "arm64-v8a/lib.neon-android.so", "x86_64/lib.avx2-android.so"}
    assets = {file.name: file.read_bytes() for file in (main / "assets/artifact").iterdir()}
    kept = {file.name for file in artifact.manifest.files if not file.name.endswith(".so")}
    assert assets.keys() == {*kept, MANIFEST} and all(assets[name] == (artifact.path / name).read_bytes() for name in kept)
    targets = [library["target"]["name"] for library in json.loads(assets[MANIFEST])["libraries"]]
    assert targets == ["cpu:dotprod@android", "cpu:neon@android", "cpu:avx2@android"]
    assert (project / "licenses/model.txt").read_text().endswith("MIT\n\nThe text.")
    assert "Apache License" in (project / "licenses/cupola.txt").read_text()


def test_no_word_of_the_templates_is_left_and_markup_is_well_formed(project: Path) -> None:
    texts = {file: file.read_text() for file in project.rglob("*") if file.suffix in (".kts", ".java", ".xml", ".md", ".txt", ".c", ".h")}
    assert not [f"{file}: {found}" for file, text in texts.items() for found in re.findall(r"@[A-Z_]+@", text)]
    manifest = ElementTree.parse(project / "app/src/main/AndroidManifest.xml").getroot()
    (activity,) = manifest.iter("activity")
    assert activity.get("{http://schemas.android.com/apk/res/android}name") == ".MainActivity"
    gradle = (project / "app/build.gradle.kts").read_text()
    assert 'abiFilters += listOf("arm64-v8a", "x86_64")' in gradle and 'applicationId = "org.example.tiny_model"' in gradle
    assert 'versionName = "1.2"' in gradle and 'rootProject.name = "tiny_model"' in (project / "settings.gradle.kts").read_text()
    for file in project.rglob("*.kts"):  # there is no Kotlin here to compile them
        text = re.sub(r'"(\\.|[^"\\])*"|//.*', "", file.read_text())
        assert all(text.count(opening) == text.count(closing) for opening, closing in ("()", "{}"))


def test_its_c_compiles_as_androids(project: Path, tmp_path: Path) -> None:
    """By another C library's headers: Android's come with its NDK."""
    include = java_home() / "include"
    compiler = compiler_for(LINUX, "riscv64")[:-1]  # ziglang's, which has headers for musl
    flags = ["aarch64-linux-musl", "-D__ANDROID__", "-std=gnu11", "-c", "-Wall", "-Werror=implicit-function-declaration"]
    flags += ["-I", str(include), "-I", str(include / "linux"), "-I", str(project / CPP / "cupola"), "-o", str(tmp_path / "made.o")]
    for source in sorted((project / CPP).rglob("*.c")):
        done = subprocess.run([*compiler, *flags, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def compile_java(classes: Path, *sources: Path) -> None:
    command = ["javac", "-Xlint:all", "-Werror", "--release", "11", "-d", str(classes), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_its_java_answers_as_python_does(project: Path, artifact: Artifact, tmp_path: Path) -> None:
    """Over this machine's library, in a folder as Android has it: the library is not there, but where the system looks for it."""
    include = java_home() / "include"
    (tmp_path / "Answer.java").write_text(ANSWER)
    compile_java(tmp_path / "classes", tmp_path / "Answer.java", *((project / JAVA / f"{name}.java") for name in ("Model", "Native")))
    sources = sorted((project / CPP).rglob("*.c"))
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-I", include, "-I", include / "linux", "-I", project / CPP / "cupola"]
    subprocess.run(["cc", *flags, *sources, "-ldl", "-o", tmp_path / "libapp.so"], check=True)
    folder, prompt = tmp_path / "artifact", [7, 3, 100, 42]
    shutil.copytree(artifact.path, folder)
    (folder / "lib.so").rename(tmp_path / "lib.so")
    command = ["java", f"-Djava.library.path={tmp_path}", "-cp", tmp_path / "classes", "org.cupola.app.Answer", folder]

    def ask(limit: int, tokens: list[int]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        words = [*map(str, [*command, limit, *tokens])]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)

    params = cupola.SamplingParams(temperature=0, max_tokens=12)
    (expected,) = cupola.LLM(artifact, max_num_seqs=1).generate(prompt, params)
    first, *found = ask(12, prompt).stdout.split("\n")[:-1]
    assert first == "cpu:generic 64"
    ended = expected.outputs[0].finish_reason == "stop"
    assert [int(token) for token in found] == list(expected.outputs[0].token_ids)[: -1 if ended else None]
    failed = ask(12, [1] * 65)
    assert failed.returncode == 1 and "IllegalStateException" in failed.stderr


def test_its_screen_compiles_over_declarations_of_android(project: Path, tmp_path: Path) -> None:
    """Of the classes and methods that it uses, as Android's and DJL's documentation have them."""
    java_home()
    for name, body in STUBS.items():
        file = tmp_path / "stubs" / f"{name.replace('.', '/')}.java"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"package {name.rpartition('.')[0]};\npublic {body}\n")
    compile_java(tmp_path / "classes", *(tmp_path / "stubs").rglob("*.java"), *(project / JAVA).glob("*.java"))
    (tmp_path / "Show.java").write_text(
        "package org.cupola.app; public class Show { public static void main(String[] a) {"
        ' System.out.print(Prompt.of("hi").replace("\\n", "|") + Prompt.HAS_SPECIAL_TOKENS); } }'
    )
    compile_java(tmp_path / "classes", tmp_path / "Show.java", project / JAVA / "Prompt.java")
    shown = subprocess.run(
        ["java", "-Dfile.encoding=UTF-8", "-cp", tmp_path / "classes", "org.cupola.app.Show"], capture_output=True, text=True, check=True
    ).stdout
    assert shown == '<|user|>"\\|hi|bot:étrue'


def test_the_command_says_what_it_made(artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["package", str(artifact.path), "-o", str(tmp_path / "a"), "--app", "android", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["packages"]
    folder = Path(made["folder"])
    assert made["num_bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert made["library_bytes"] == 12 and made["num_bytes"] == made["artifact_bytes"] + made["library_bytes"] + made["other_bytes"]
    assert made["has_chat_template"] and made["licenses"]["tiny"] == "not stated"
    prompt = (folder / JAVA / "Prompt.java").read_text()
    assert 'return "user: " + text + "\\nbot:";' in prompt
    assert run(["package", str(artifact.path), "-o", str(tmp_path / "b"), "--app", "android"]) == 0
    text = capsys.readouterr().out
    assert "cold start  not measured" in text and "cpu:neon" in text and "ai.djl.huggingface" in text
    assert run(["package", str(artifact.path), "-o", str(tmp_path / "b"), "--app", "android"]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--app", "ios"], "no --os makes libraries for iOS yet"),
        (["--app", "windows"], "app: is 'windows'"),
        (["--app", "android", "--zip"], "zip: goes not with --app"),
        (["--app", "android", "--arch", "x86_64"], "arch: goes not with --app"),
    ],
)
def test_other_apps_are_refused(options: list[str], message: str, artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["package", str(artifact.path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_artifact_without_what_an_app_needs_is_refused(tmp_path: Path, artifact: Artifact) -> None:
    alone = make_artifact(tmp_path / "alone")
    with pytest.raises(OptionError, match=r"but for cpu:generic \(make one: cupola compile SOURCE --target cpu:dotprod@android"):
        choose_android(alone, name=None, version="1.0", license="")
    files = tuple(file for file in artifact.manifest.files if file.name != "tokenizer.json")
    with pytest.raises(OptionError, match="has no tokenizer"):
        choose_android(Artifact(artifact.path, replace(artifact.manifest, files=files)), name=None, version="1.0", license="")
