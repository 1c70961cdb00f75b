"""Packages: wheels that pip installs and folders that Python runs, with all that an artifact takes and nothing else."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import replace
from email.parser import Parser
from pathlib import Path

import pytest

from cupola.compiler.cli.app import run
from cupola.compiler.package.archive import Member, write_folder, write_zip
from cupola.compiler.package.contents import Contents, choose_contents
from cupola.compiler.package.runtime_files import requirements, rewritten, runtime_members
from cupola.compiler.package.wheel import write_wheel
from cupola.compiler.package.zip_folder import write_zip_folder
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import LICENSE, DeviceSpec, LibrarySpec
from cupola.runtime.errors import CupolaError, OptionError
from tests.e2e.test_alone import PROJECT, make_environment
from tests.runtime.tiny_artifact import make_artifact

MAX_RUNTIME_BYTES = 2_000_000


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("package") / "Tiny-Model.1")


@pytest.fixture(scope="module")
def wheel(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(choose_contents(artifact), tmp_path_factory.mktemp("wheel"))[0]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with numpy, tokenizers and jinja2, and no cupola."""
    python = make_environment(tmp_path_factory.mktemp("bare") / "venv", PROJECT["dependencies"])
    for link in python.parents[1].glob("lib/python*/site-packages/cupola*"):
        link.unlink()
    return python


def pip(python: Path, *arguments: object) -> None:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments), "--target", str(site)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def output(*command: object, folder: Path) -> str:
    """The command's standard output, without the environment that names this checkout."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import sys, tiny_model_1 as one, another as two
answers = [m.load(max_num_seqs=1).generate("ab", m.SamplingParams(temperature=0, max_tokens=5))[0].outputs[0].token_ids for m in (one, two)]
assert one.cupola is not two.cupola and one.LLM is not two.LLM and one.__version__ == "1.0" and two.__version__ == "2.0"
assert answers[0] == answers[1] and len(answers[0]) == 5
try:
    one.no_such_name
except AttributeError as error:
    print(error)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"cupola", "torch", "tvm", "typer", "transformers", "rich"}))
"""


def test_wheels_are_installed_and_used_side_by_side(artifact: Artifact, wheel: Path, python: Path, tmp_path: Path) -> None:
    pip(python, "install", "--no-deps", "--no-index", wheel)
    pip(python, "install", "--no-deps", "--no-index", write_wheel(choose_contents(artifact, name="another", version="2.0"), tmp_path)[0])
    assert output(python, "-P", "-c", USE, folder=tmp_path) == "module 'tiny_model_1' has no attribute 'no_such_name'\n\n"
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    command = [python, site / "bin" / "tiny-model-1"]
    assert output(*command, "--version", folder=tmp_path) == "tiny-model-1 1.0\n"
    answer = output(*command, "run", "-p", "hello", "--max-tokens", 4, folder=tmp_path)
    assert answer and answer == output(python, "-P", "-m", "another", "run", "-p", "hello", "--max-tokens", 4, folder=tmp_path)
    shown = output(*command, "run", "--help", folder=tmp_path)
    assert "--max-tokens" in shown and "--quant" not in shown and "source" not in shown
    assert len(output(*command, "serve", "--help", folder=tmp_path)) > 1000


def test_the_folder_of_a_zip_file_runs_where_it_lies(artifact: Artifact, python: Path, tmp_path: Path) -> None:
    file, _ = write_zip_folder(choose_contents(artifact, name="tiny", version="0.1"), tmp_path)
    subprocess.run([sys.executable, "-c", "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall()", file], cwd=tmp_path, check=True)
    folder = tmp_path / "tiny-0.1"
    answer = output(python, folder, "run", "-p", "hello", "--max-tokens", 4, folder=Path("/"))
    started = output("env", f"PYTHON={python}", "sh", folder / "tiny.sh", "run", "-p", "hello", "--max-tokens", 4, folder=tmp_path)
    assert answer == started and answer
    nothing = subprocess.run([sys.executable, "-S", folder, "run"], capture_output=True, text=True, check=False)
    assert nothing.returncode == 1
    assert "lacks numpy, tokenizers, jinja2 (pip install -r " in nothing.stderr and nothing.stderr.count("\n") == 1


def test_the_same_content_has_the_same_bytes(artifact: Artifact, wheel: Path, tmp_path: Path) -> None:
    for file in artifact.path.iterdir():
        os.utime(file, (1e9, 1e9))
    previous = os.umask(0o077)
    try:
        again, _ = write_wheel(choose_contents(artifact), tmp_path / "new")
    finally:
        os.umask(previous)
    assert again.name == wheel.name and again.read_bytes() == wheel.read_bytes()
    assert [file.name for file in (tmp_path / "new").iterdir()] == [wheel.name]


def test_a_wheel_says_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)} and archive.testzip() is None
    about = "tiny_model_1-1.0.dist-info"
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(members[f"{about}/RECORD"].decode()))}
    assert rows.keys() == members.keys() and rows.pop(f"{about}/RECORD") == ["", ""]
    for name, (digest, size) in rows.items():
        expected = urlsafe_b64encode(hashlib.sha256(members[name]).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={expected}", len(members[name]))
    tags = wheel.stem.split("-")[-1].split(".")
    found = [line.split(": ")[1] for line in members[f"{about}/WHEEL"].decode().splitlines() if line.startswith("Tag")]
    assert found == [f"py3-none-{tag}" for tag in tags]
    metadata = Parser().parsestr(members[f"{about}/METADATA"].decode())
    assert metadata["Name"] == "tiny-model-1" and metadata["License-Expression"] == "Apache-2.0 AND LicenseRef-model"
    needed = metadata.get_all("Requires-Dist")
    assert needed[:3] == requirements() and {line.partition("<")[0] for line in needed[:3]} == {"numpy", "tokenizers", "jinja2"}
    assert all(line.endswith('extra == "serve"') for line in needed[3:]) and any(line.startswith("uvicorn") for line in needed[3:])
    assert all(f"{about}/licenses/{name}" in members for name in metadata.get_all("License-File"))
    assert b"Apache License" in members[f"{about}/licenses/cupola.txt"] and b"states no licence" in members[f"{about}/licenses/model.txt"]


def imported(tree: ast.AST, name: str) -> set[str]:
    """Modules of the package that a module imports when it is loaded: not in functions, not for type checkers."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{name}."):
            found.add(str(node.module))
        elif not isinstance(node, ast.FunctionDef) and "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", ast.Constant(0))):
            found |= imported(node, name)
    return found


def test_the_runtime_is_whole_and_small() -> None:
    members = {member.name: member.content for member in runtime_members("a_model")}
    assert all(isinstance(content, bytes) for content in members.values())
    assert sum(len(content) for content in members.values() if isinstance(content, bytes)) <= MAX_RUNTIME_BYTES
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in members if name.endswith(".py")}
    for name, content in members.items():
        if name.endswith(".py"):
            tree = ast.parse(content)
            missing = {module for module in imported(tree, "a_model") if module not in modules}
            assert not missing, f"{name} imports what is not there: {missing}"
            roots = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            roots |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert "cupola" not in roots, f"{name} imports cupola by its own name"
    assert "a_model/cupola/runtime/server/page/index.html" in members
    assert not any(part in name for name in members for part in ("load_generator", "measure", "frontend"))


def test_what_cannot_be_rewritten_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import cupola\nfrom cupola.runtime import errors\nimport cupola_other\n")
    assert rewritten(file, "m") == b"from m import cupola\nfrom m.cupola.runtime import errors\nimport cupola_other\n"
    file.write_text("import cupola.runtime.errors\n")
    with pytest.raises(CupolaError, match=r"module\.py:1: only `import cupola`"):
        rewritten(file, "m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "3d"}, "name: is '3d', which is no name"),
        ({"name": "My_Model"}, "is no name"),
        ({"name": "class"}, "is no name"),
        ({"name": "numpy"}, "is taken"),
        ({"name": "json"}, "is taken"),
        ({"name": "cupola"}, "is taken"),
        ({"version": "1.0-2"}, "version: is '1.0-2', which is no version"),
        ({"version": "one"}, "is no version"),
        ({"systems": ("windows",)}, r"os: is 'windows', and the artifact has linux on \w+"),
        ({"architectures": ("mips",)}, "arch: is 'mips'"),
    ],
)
def test_what_makes_no_package_is_refused(artifact: Artifact, options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        choose_contents(artifact, **options)  # type: ignore[arg-type]


def with_libraries(artifact: Artifact) -> Artifact:
    """The artifact as if it had libraries for three more machines."""
    triples = {"lib.w.dll": "x86_64-pc-windows-gnu", "lib.m.dylib": "aarch64-apple-macosx13.0", "lib.a.so": "aarch64-unknown-linux-android"}
    (library,) = artifact.manifest.libraries
    more, files = [], []
    for name, triple in triples.items():
        (artifact.path / name).write_bytes(b"code")
        (artifact.path / f"{name}.json").write_bytes(b"{}")
        more.append(LibrarySpec(name, f"{name}.json", DeviceSpec(f"cpu@{name}", "cpu", name, triple, ())))
        files += [replace(artifact.manifest.files[0], name=file, num_bytes=size) for file, size in ((name, 4), (f"{name}.json", 2))]
    manifest = replace(artifact.manifest, libraries=(library, *more), files=(*artifact.manifest.files, *files))
    return Artifact(artifact.path, manifest)


def names_of(contents: Contents, folder: Path) -> tuple[str, set[str]]:
    file, members = write_wheel(contents, folder)
    kept = {member.name.rpartition("/")[2] for member in members if "/artifact/lib" in member.name}
    return file.stem.split("-")[-1], kept


def test_libraries_are_chosen_by_system_and_machine(tmp_path: Path) -> None:
    many = with_libraries(make_artifact(tmp_path / "model"))
    everything = choose_contents(many)
    tag, kept = names_of(everything, tmp_path)
    assert [part.partition("_2_")[0] for part in tag.split(".")] == ["android_29_arm64_v8a", "macosx_13_0_arm64", "manylinux", "win_amd64"]
    assert kept == {"lib.so", "lib.w.dll", "lib.w.dll.json", "lib.m.dylib", "lib.m.dylib.json", "lib.a.so", "lib.a.so.json"}
    one = choose_contents(many, systems=("windows",))
    assert names_of(one, tmp_path) == ("win_amd64", {"lib.w.dll", "lib.w.dll.json"})
    assert names_of(choose_contents(many, systems=("android", "macos"), architectures=("aarch64",)), tmp_path)[0].count(".") == 1
    with pytest.raises(OptionError, match="arch: leaves no library"):
        choose_contents(many, systems=("windows",), architectures=("aarch64",))


def test_licences(artifact: Artifact, tmp_path: Path) -> None:
    contents = choose_contents(artifact)
    assert contents.license_name == "not stated"
    stated = replace(contents, model_license="Apache-2.0\n")
    assert (stated.license_name, stated.license_expression) == ("Apache-2.0", "Apache-2.0")
    assert replace(contents, model_license="gemma\nhttps://x\n").license_expression == "Apache-2.0 AND LicenseRef-gemma"
    assert replace(contents, model_license="Llama 3.1 / own\ntext").license_expression == "Apache-2.0 AND LicenseRef-llama-3.1-own"
    assert choose_contents(artifact, license="mit\n").license_expression == "Apache-2.0 AND MIT"
    copy = make_artifact(tmp_path / "model")
    (copy.path / LICENSE).write_text("mit\n")
    listed = replace(copy.manifest, files=(*copy.manifest.files, replace(copy.manifest.files[0], name=LICENSE)))
    assert choose_contents(Artifact(copy.path, listed)).license_name == "mit"


def test_nothing_is_left_of_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OptionError, match="out: can't be written: "):
        write_zip(tmp_path / "file" / "a.zip", [Member("a", b"")])
    with pytest.raises(OptionError, match="out: can't be written: "):
        write_zip(tmp_path / "a.zip", [Member("a", b"a"), Member("b", tmp_path)])
    write_folder(tmp_path / "new", [Member("b/c", b"text", is_program=True)])
    assert (tmp_path / "new/b/c").stat().st_mode & 0o777 == 0o755
    with pytest.raises(OptionError, match="out: exists"):
        write_folder(tmp_path / "new", [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "new"]


def test_the_command(artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    licence = tmp_path / "licence"
    licence.write_text("mit\nAs is.\n")
    arguments = ["package", str(artifact.path), "-o", str(tmp_path), "--wheel", "--zip", "--license", str(licence)]
    assert run([*arguments, "--json", "--no-cold-start"]) == 0
    packages = json.loads(capsys.readouterr().out)["packages"]
    assert [package["kind"] for package in packages] == ["wheel", "zip"]
    for package in packages:
        with zipfile.ZipFile(package["file"]) as archive:
            sizes = [package[f"{part}_bytes"] for part in ("artifact", "runtime", "other")]
            assert sum(sizes) == sum(info.file_size for info in archive.infolist()) and min(sizes) > 0
            weights = sum(info.file_size for info in archive.infolist() if "tiny_model_1/artifact/" in info.filename)
            assert (sizes[0], package["num_bytes"]) == (weights, Path(package["file"]).stat().st_size)
        assert package["licenses"] == {"cupola": "Apache-2.0", "tiny": "mit"} and package["cold_start"] is None
    assert run(["package", str(artifact.path), "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not stated" in shown and " s right after it is installed" in shown and "numpy" in shown
    for wrong, said in (([tmp_path / "none"], "can't be read"), ([artifact.path, "--license", "/"], "license: can't be read")):
        assert run(["package", *map(str, wrong)]) == 2
        assert said in capsys.readouterr().err
