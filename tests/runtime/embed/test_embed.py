"""The C interface: a program over it takes the tokens, by logits of the same bits, that the Python runtime gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.models import find_family
from cupola.runtime.machine import here
from cupola.targets.native.link import compiler_for
from cupola.targets.native.systems import LINUX, WINDOWS, System, this_system

SOURCES = sorted((Path(cupola.__file__).parent / "runtime" / "embed").resolve().glob("*.c"))
PROMPT, COUNT = [1, 5, 35, 28, 17, 5, 99, 100], 8
WINE = next((path for name in ("wine64", "/usr/lib/wine/wine64", "wine") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    """With libraries for several machines over one set of weights: this machine's first."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("embed")
    config = transformers.AutoConfig.for_model("llama", **find_family("llama").tiny)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    return cupola.compile(folder / "model", out=folder / "artifact", target="cpu,cpu:avx2@windows,cpu:dotprod@linux,cpu:riscv64@linux")


def build(system: System, architecture: str, folder: Path) -> Path:
    program = folder / "cupola-run.exe"
    flags = ["-std=gnu11", "-O2", "-g0", "-o", str(program), *map(str, SOURCES), *(["-ldl"] if system != WINDOWS else [])]
    subprocess.run([*compiler_for(system, architecture), *flags], check=True)
    return program


def fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def answer(command: list[str], artifact: cupola.Artifact) -> tuple[str, list[tuple[int, str]]]:
    """The target that was chosen, and each token with its hash."""
    arguments = [*command, str(artifact.path), str(COUNT), "2", *map(str, PROMPT)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, "WINEDEBUG": "-all"}, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.split("\n")[:-1]
    return first.strip(), [(int(line.split()[0]), line.split()[1]) for line in lines]


def expected(artifact: cupola.Artifact) -> list[tuple[int, str]]:
    llm, tokens, found = cupola.LLM(artifact), list(PROMPT), []
    for _ in range(COUNT):
        logits = np.ascontiguousarray(llm.logits(tokens)[-1], np.float32)
        tokens.append(int(logits.argmax()))
        found.append((tokens[-1], f"{fnv1a(logits.tobytes()):016x}"))
    return found


def test_the_same_logits_as_from_python(artifact: cupola.Artifact, tmp_path: Path) -> None:
    target, found = answer([str(build(this_system(), here(), tmp_path))], artifact)
    assert target == f"target {artifact.manifest.libraries[0].target.name}"
    assert found == expected(artifact)


@pytest.mark.skipif(WINE is None, reason="there is no wine to run a program for Windows with")
def test_a_program_for_windows_takes_the_library_for_windows(
    artifact: cupola.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "wine"))
    names = ["lib.so", "lib.avx2-windows.dll", "lib.dotprod.so", "lib.riscv64.so"]
    assert [library.file for library in artifact.manifest.libraries] == names
    target, found = answer([str(WINE), str(build(WINDOWS, "x86_64", tmp_path))], artifact)
    assert target == "target cpu:avx2@windows"
    assert [token for token, _ in found] == [token for token, _ in expected(artifact)]


@pytest.mark.parametrize(("architecture", "target"), [("aarch64", "cpu:dotprod"), ("riscv64", "cpu:riscv64")])
def test_a_program_for_another_processor_takes_its_library(
    architecture: str, target: str, artifact: cupola.Artifact, tmp_path: Path
) -> None:
    emulator = next((path for name in ("", "-static") if (path := shutil.which(f"qemu-{architecture}{name}"))), None)
    libraries = Path(f"/usr/{architecture}-linux-gnu")
    if emulator is None or not libraries.is_dir():
        pytest.skip(f"there is no qemu for {architecture}, or no C library for it in {libraries}")
    chosen, found = answer([emulator, "-L", str(libraries), str(build(LINUX, architecture, tmp_path))], artifact)
    assert chosen == f"target {target}"
    assert [token for token, _ in found] == [token for token, _ in expected(artifact)]


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([build(this_system(), here(), tmp_path), tmp_path, "1", "1", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"cupola-run: {tmp_path}/manifest.json: can't be read\n")
