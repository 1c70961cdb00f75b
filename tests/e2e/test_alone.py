"""An artifact runs and chats where nothing is installed but numpy, tokenizers and jinja2; with the server's packages it is served."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cupola
from cupola.compiler.package.contents import choose_contents
from cupola.compiler.package.wheel import write_wheel
from cupola.runtime.artifact.folder import Artifact
from tests.conftest import Compiled

ROOT = Path(cupola.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NOT_IMPORTED = {"huggingface-hub"}  # tokenizers asks for it, and imports it for downloads alone
FORBIDDEN = ("tvm", "tvm_ffi", "ml_dtypes", "safetensors", "torch", "typer", "rich", "huggingface_hub")
MEMORY = """
import sys, time
start = time.perf_counter()
import cupola
llm = cupola.LLM(sys.argv[1])
seconds = time.perf_counter() - start
llm.generate("The capital of Japan is", cupola.SamplingParams(temperature=0, max_tokens=8))
mapped, total = {}, 0
for line in open("/proc/self/smaps"):
    words = line.split()
    if "-" in words[0] and not words[0].endswith(":"):
        name = words[-1].rpartition("/")[2]
        start, end = (int(word, 16) for word in words[0].split("-"))
        pools = [pool for pool in llm.engine.executor._pools.tensors.values() if start <= pool.address + pool.memory.nbytes // 2 < end]
    elif words[0] == "Rss:" and not pools and not name.startswith("weights-"):
        total += int(words[1])
imported = sorted({name.partition(".")[0] for name in sys.modules})
print(total / 1000, seconds, *imported)
"""


def needed(requirements: list[str]) -> set[str]:
    """The names of all that the requirements ask for, themselves included."""
    found: set[str] = set()
    left = [Requirement(line) for line in requirements]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in found | NOT_IMPORTED or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        left += map(Requirement, metadata.requires(name) or ())
    return found


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """A virtual environment with links to what is installed here of the requirements, and to cupola. Returns its interpreter."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "cupola").symlink_to(ROOT / "cupola")
    for name in {*needed(requirements), "cupola"}:
        for file in metadata.files(name) or ():
            top = Path(file.parts[0])
            place = Path(file.locate()).parents[len(file.parts) - 1] / top
            if top.suffix != ".pth" and file.parts[0] not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(place)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("alone") / "venv", PROJECT["dependencies"])


def cupola_of(python: Path, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(python), "-P", "-m", "cupola", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_no_more_than_three_packages_are_asked_for() -> None:
    assert {Requirement(line).name for line in PROJECT["dependencies"]} == {"numpy", "tokenizers", "jinja2"}
    assert needed(PROJECT["dependencies"]) == {"numpy", "tokenizers", "jinja2", "markupsafe"}


def test_it_runs(python: Path, smollm2_w4a8: Compiled) -> None:
    done = cupola_of(python, "run", smollm2_w4a8.path, "-p", "What is the capital of Japan?", "--max-tokens", 16, "--stats")
    assert done.returncode == 0 and "Tokyo" in done.stdout, done.stderr
    assert re.fullmatch(r"first token after [\d.]+ s; \d+ tokens in [\d.]+ s, [\d.]+ a second\n", done.stderr)
    again = cupola_of(python, "run", smollm2_w4a8.path, "--max-tokens", 16, stdin="What is the capital of Japan?")
    assert again.stdout == done.stdout


def test_its_wheel_is_small_and_answers(python: Path, smollm2_w4a8: Compiled, tmp_path: Path) -> None:
    file, members = write_wheel(choose_contents(Artifact.open(smollm2_w4a8.path), name="smollm2"), tmp_path)
    assert file.stat().st_size <= 102e6
    assert sum(member.num_bytes for member in members if member.name.startswith("smollm2/cupola/")) <= 2e6
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "site")
        (about,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        assert "\nLicense-Expression: Apache-2.0\n" in archive.read(about).decode()
    command = [python, "-P", "-m", "smollm2", "run", "-p", "What is the capital of Japan?", "--max-tokens", "16"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    assert "Tokyo" in subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment).stdout


def test_it_chats(python: Path, smollm2_w4a8: Compiled) -> None:
    done = cupola_of(python, "chat", smollm2_w4a8.path, "--max-tokens", 12, stdin="What is the capital of Japan?\n/reset\nSay hello.\n")
    assert done.returncode == 0 and "Tokyo" in done.stdout and len(done.stdout.splitlines()) >= 3, done.stderr


def test_memory_and_imports(python: Path, smollm2_w4a8: Compiled) -> None:
    done = subprocess.run([python, "-P", "-c", MEMORY, smollm2_w4a8.path], capture_output=True, text=True, timeout=120, check=True)
    megabytes, _, *imported = done.stdout.split()
    assert not set(FORBIDDEN) & set(imported)
    assert float(megabytes) < 60, "resident memory beside weights and K/V"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "smollm2", "-p", "hi"], r"smollm2: is no artifact's folder, and the compiler's packages are not installed \(pip install"),
        (["run", "{artifact}", "-p", "hi", "--max-tokens", "many"], "argument --max-tokens: invalid int value: 'many'"),
        (["run", "{artifact}", "-p", "hi", "--max-tokens", "0"], "max_tokens: is 0"),
        (["bench", "{artifact}"], "invalid choice: 'bench'.*more commands come with `pip install 'cupola\\[cli\\]'`"),
        (["serve", "{artifact}"], r"serve: needs the package msgspec, which isn't installed \(pip install 'cupola\[serve\]'\)"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistakes_are_one_line(python: Path, smollm2_w4a8: Compiled, arguments: list[str], said: str) -> None:
    done = cupola_of(python, *(argument.format(artifact=smollm2_w4a8.path) for argument in arguments))
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert re.fullmatch(f"error: .*{said}.*\n", done.stderr), done.stderr


def test_help_shows_what_there_is(python: Path) -> None:
    assert "run" in cupola_of(python, "--help").stdout
    options = set(re.findall(r"--[\w-]+", cupola_of(python, "serve", "--help").stdout))
    command, environment = [sys.executable, "-P", "-m", "cupola", "serve", "--help"], {**os.environ, "COLUMNS": "200"}
    full = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert options - {"--help"} <= set(re.findall(r"--[\w-]+", full)) and {"--port", "--no-prefix-caching"} <= options
    assert cupola_of(python, "--version").stdout == f"cupola {cupola.__version__}\n"


def wait_until_healthy(server: str) -> None:
    for _ in range(600):
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{server}/health", timeout=60):
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.fixture
def server(tmp_path: Path, smollm2_w4a8: Compiled) -> Iterator[str]:
    python = make_environment(tmp_path / "venv", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["serve"]])
    command = [python, "-P", "-m", "cupola", "serve", smollm2_w4a8.path, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                wait_until_healthy(address[0])
                yield address[0]
                break
        process.terminate()
        process.stdout.read()
    assert process.returncode == 0, "".join(said)


def test_it_is_served(server: str) -> None:
    body = {"messages": [{"role": "user", "content": "What is the capital of Japan?"}], "max_tokens": 16, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "Tokyo" in json.load(answer)["choices"][0]["message"]["content"]
