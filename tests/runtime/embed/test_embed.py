"""The C interface: a program over it takes the tokens, by logits of the same bits, that the Python runtime gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.runtime.artifact.read import read_plan
from cupola.runtime.machine import here
from cupola.runtime.system.fast_cores import choose_cores
from cupola.targets.native.link import compiler_for
from cupola.targets.native.systems import LINUX, WINDOWS, System, this_system
from tests.checkpoints import save_tiny
from tests.runtime.system.test_fast_cores import machine
from tests.targets.emulated import emulator, run_arm_python
from tests.targets.native.inspection import inspect_elf, inspect_mach_o, inspect_pe

SOURCES = sorted((Path(cupola.__file__).parent / "runtime" / "embed").resolve().glob("*.c"))
DOCUMENTATION = SOURCES[0].parents[2] / "docs" / "embedding-in-an-app.md"
PROMPT, COUNT = [(7 * i + 3) % 100 for i in range(21)], 32  # an odd number of rows that goes in tiles
FEATURES = {"max": ["asimd", "asimddp", "i8mm"], "neoverse-n1": ["asimd", "asimddp"], "cortex-a72": ["asimd"]}  # by what qemu calls them
CHOSEN = {"max": "cpu:i8mm", "neoverse-n1": "cpu:dotprod", "cortex-a72": "cpu:neon"}
OTHERS = ("cpu:avx2@windows", "cpu:neon@linux", "cpu:riscv64@linux", "cpu:dotprod@android", "cpu:apple-m1@macos")
ARM = pytest.mark.by_turns(together="integers for Arm")
ASK = """
#include <stdio.h>
#include "internal.h"
int main(int argc, char **argv) {
  for (int i = 1; i < argc; ++i) if (has_feature(argv[i])) puts(argv[i]);
}
"""
ANSWER = """
import sys, cupola
from cupola.runtime.device.choose import choose_library
folder, count, *prompt = sys.argv[1:]
llm = cupola.LLM(folder)
[output] = llm.generate([[int(token) for token in prompt]], cupola.SamplingParams(temperature=0, max_tokens=int(count), ignore_eos=True))
print(choose_library(llm.artifact).target.name, *output.outputs[0].token_ids)
"""
WINE = next((path for name in ("wine64", "/usr/lib/wine/wine64", "wine") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    """In float32, with libraries for all systems over one set of weights: this machine's first."""
    folder = tmp_path_factory.mktemp("embed")
    return cupola.compile(save_tiny(folder / "model", "llama"), out=folder / "artifact", target=",".join(("cpu", *OTHERS)))


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    """In integers, which Arm's instruction sets multiply each in its own way; tokens by AVX2 have the same bits wherever there is one."""
    folder = tmp_path_factory.mktemp("integers")
    targets = ",".join(("cpu:avx2", *CHOSEN.values()))
    return cupola.compile(save_tiny(folder / "model", "llama"), out=folder / "artifact", target=targets, os="linux", quant="w4a8")


def build(system: System, architecture: str, folder: Path, sources: Sequence[Path] = SOURCES) -> Path:
    program = folder / "cupola-run.exe"
    flags = ["-std=gnu11", "-O2", "-g0", "-I", str(SOURCES[0].parent), "-o", str(program), *map(str, sources)]
    flags += ["-ldl"] if system != WINDOWS else []
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


def test_threads_that_save_power_give_the_same_logits(artifact: cupola.Artifact, tmp_path: Path) -> None:
    main, saving = SOURCES[0].with_name("main.c"), tmp_path / "main.c"
    line = "if (!model) return fail(message);"
    saving.write_text(main.read_text().replace(line, f'{line} if (cupola_model_save_power(model, 1)) return fail("it can\'t");'))
    _, found = answer([str(build(this_system(), here(), tmp_path, [saving, *(file for file in SOURCES if file != main)]))], artifact)
    assert found == expected(artifact)


def test_each_library_is_as_its_system_wants_it(artifact: cupola.Artifact) -> None:
    inspect = {"macos": inspect_mach_o, "windows": inspect_pe, "android": partial(inspect_elf, is_android=True), "": inspect_elf}
    for library in artifact.manifest.libraries:
        kernels = {
            f"kernel_{kernel.name}" for kernel in read_plan(artifact.path / library.plan, artifact.manifest.function("forward")).kernels
        }
        functions = "abi", "run", "run_calls", "set_threads", "set_cores", "set_power_saver", "share_turn", "workspace_bytes"
        exports = {f"cupola_{name}" for name in (*functions, *kernels)}
        inspect.pop(library.target.name.partition("@")[2], inspect_elf)(artifact.path / library.file, exports)
    assert not inspect


@pytest.mark.by_turns
@pytest.mark.skipif(WINE is None, reason="there is no wine to run a program for Windows with")
def test_a_program_for_windows_takes_the_library_for_windows(
    artifact: cupola.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "wine"))
    target, found = answer([str(WINE), str(build(WINDOWS, "x86_64", tmp_path))], artifact)
    assert target == "target cpu:avx2@windows"
    assert [token for token, _ in found] == [token for token, _ in expected(artifact)]


@pytest.mark.parametrize(("architecture", "processor", "target"), [("aarch64", "max", "cpu:neon"), ("riscv64", "rv64", "cpu:riscv64")])
def test_a_program_for_another_processor_takes_its_library(
    architecture: str, processor: str, target: str, artifact: cupola.Artifact, tmp_path: Path
) -> None:
    run = emulator(architecture, processor, Path(f"/usr/{architecture}-linux-gnu"))
    chosen, found = answer([*run, str(build(LINUX, architecture, tmp_path))], artifact)
    assert chosen == f"target {target}"
    assert [token for token, _ in found] == [token for token, _ in expected(artifact)]


@ARM
def test_programs_for_arm_take_what_a_processor_has_with_the_same_bits(integers: cupola.Artifact, tmp_path: Path) -> None:
    run = {processor: emulator("aarch64", processor, Path("/usr/aarch64-linux-gnu")) for processor in CHOSEN}
    program = build(LINUX, "aarch64", tmp_path)
    found = {processor: answer([*run[processor], str(program)], integers) for processor in CHOSEN}
    assert {processor: target for processor, (target, _) in found.items()} == {p: f"target {target}" for p, target in CHOSEN.items()}
    first, *others = (tokens for _, tokens in found.values())
    assert all(tokens == first for tokens in others)
    assert [token for token, _ in first] == [token for token, _ in expected(integers)]


@ARM
@pytest.mark.parametrize("processor", CHOSEN)
def test_python_on_arm_takes_what_a_processor_has(processor: str, integers: cupola.Artifact) -> None:
    found = run_arm_python(processor, ANSWER, integers.path, COUNT, *PROMPT, path=SOURCES[0].parents[2])
    assert found.split() == [CHOSEN[processor], *(str(token) for token, _ in expected(integers))]


@pytest.mark.parametrize("processor", FEATURES)
def test_features_are_those_of_the_processor(processor: str, tmp_path: Path) -> None:
    """In C and in Python; of all that are known, those that tell instruction sets apart."""
    program = tmp_path / "ask.c"
    program.write_text(ASK, encoding="utf-8")
    run = emulator("aarch64", processor, Path("/usr/aarch64-linux-gnu"))
    asked = [*run, str(build(LINUX, "aarch64", tmp_path, [program, SOURCES[0].with_name("features.c")])), *FEATURES["max"]]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split() == FEATURES[processor]
    text = "import sys; from cupola.runtime.machine import missing_features as m; print(*(n for n in sys.argv[1:] if not m([n])))"
    assert run_arm_python(processor, text, *FEATURES["max"], path=SOURCES[0].parents[2]).split() == FEATURES[processor]


def test_the_program_of_the_documentation(artifact: cupola.Artifact, tmp_path: Path) -> None:
    example = tmp_path / "app.c"
    example.write_text(DOCUMENTATION.read_text(encoding="utf-8").split("```c\n")[1].split("```")[0], encoding="utf-8")
    app = build(this_system(), here(), tmp_path, [example, *(source for source in SOURCES if source.name != "main.c")])
    done = subprocess.run([app, artifact.path, *map(str, PROMPT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(token) for token, _ in expected(artifact)[: 32 - len(PROMPT)]]


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([build(this_system(), here(), tmp_path), tmp_path, "1", "1", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, f"cupola-run: {tmp_path}/manifest.json: can't be read\n")


CORES = """
#include <stdio.h>
#include <stdlib.h>
#include "internal.h"
int main(int argc, char **argv) {
  int32_t cores[MOST_CORES], num_cores, count = choose_cores(argv[1], atoi(argv[2]), cores, &num_cores);
  printf("%d", count);
  for (int i = 0; i < num_cores; ++i) printf(" %d", cores[i]);
}
"""


@pytest.mark.parametrize(
    "values",
    [
        {"capacity": [300, 1024]},
        {"capacity": [1024, 300]},
        {"capacity": [1024, 1000]},
        {"capacity": [1024]},
        {"clock": [2000000, 3000000]},
        {"performance": "1"},
        {"performance": "0-0,7"},
        {"performance": "0-1"},
        {"performance": "x", "clock": [2000000, 3000000]},
        {},
    ],
    ids=str,
)
def test_fast_cores_are_those_that_python_takes(values: dict[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a made-up machine whose first cores have those capacities or clocks, of cores that this process may use."""
    monkeypatch.delenv("CUPOLA_NUM_THREADS")
    here_first, *others = sorted(os.sched_getaffinity(0))
    if (here_first, others[:1]) != (0, [1]):
        pytest.skip("needs the first two cores")
    source = tmp_path / "cores.c"
    source.write_text(CORES, encoding="utf-8")
    program = build(this_system(), here(), tmp_path, [source, *(file for file in SOURCES if file.stem in ("fast_cores", "system_posix"))])
    system = machine(tmp_path / "machine", **values)
    system.mkdir(exist_ok=True)

    def chosen(wanted: int) -> list[int]:
        command = ["taskset", "-c", "0,1", str(program), str(system), str(wanted)]
        return [int(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

    os.sched_setaffinity(0, {0, 1})
    try:
        for wanted in (0, 1, 2, 3):
            count, cores = choose_cores(wanted or None, system)
            found, *found_cores = chosen(wanted)
            assert found_cores == list(cores)
            assert found == count or (not cores and not wanted), "of alike cores Python heeds quotas too"
    finally:
        os.sched_setaffinity(0, {here_first, *others})
