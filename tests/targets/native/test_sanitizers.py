"""The C of libraries under sanitizers: data races, memory errors, undefined behaviour."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.native_source import forward_source
from cupola.compiler.plan import extract_plan
from cupola.runtime.artifact.plan import ABI, Place, Plan, PlanBuffer, PlanCall, PlanKernel
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets.native.interface import SYMBOL
from cupola.targets.native.link import RUNTIME
from cupola.targets.registry import get_target
from tests.targets.native.test_runtime import module

CALLS = 5
DRIVER = Path(__file__).with_name("driver.c")
OPTIONS = {
    "thread": {"TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1"},
    "address,undefined": {"ASAN_OPTIONS": "detect_leaks=0"},  # a forked child leaves behind what its parent's threads held
}


def plan() -> Plan:
    """Stages, each on what the one before wrote: x, then two buffers in turns, then out."""
    buffers = tuple(PlanBuffer(f"b{i}", "int64", ("n",), i, 0, i, CALLS - 1) for i in range(2))
    places = [Place("input", 0), *(Place("buffer", i % 2) for i in range(CALLS - 1)), Place("input", 1)]
    calls = tuple(PlanCall("stage", pair, (), ("n",)) for pair in itertools.pairwise(places))
    kernel = PlanKernel("stage", (TensorSpec("x", "int64", ("n",)), TensorSpec("out", "int64", ("n",))), (), ("n",))
    return Plan(ABI, ("n",), ("n * 8", "n * 8"), (), buffers, (kernel,), calls)


def compiler(sanitizer: str, folder: Path) -> list[str]:
    """A command that compiles under it; skips where there is none."""
    command = [shutil.which("cc") or "cc", "-std=gnu11", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    try:
        done = subprocess.run([*command, str(folder / "empty.c"), "-o", str(folder / "empty")], capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no C compiler")
    if done.returncode or subprocess.run(fixed_addresses(folder / "empty"), capture_output=True, check=False).returncode:
        pytest.skip(f"the C compiler has no sanitizer for {sanitizer}")
    return command


def fixed_addresses(program: Path) -> list[str]:
    """Without address space layout randomization, which some versions of the thread sanitizer can't run under."""
    return ["setarch", os.uname().machine, "-R", str(program)] if shutil.which("setarch") else [str(program)]


def run(sanitizer: str, folder: Path, runtime: Sequence[Path] = RUNTIME) -> subprocess.CompletedProcess[str]:
    """Builds the driver with it and that runtime, and runs it."""
    command, program = compiler(sanitizer, folder), folder / "driver"
    (folder / "forward.c").write_text(forward_source(plan(), (), SYMBOL))
    sources = [str(folder / "forward.c"), *map(str, runtime), str(DRIVER)]
    subprocess.run([*command, f"-DCALLS={CALLS}", *sources, "-o", str(program)], check=True)
    environment = {**os.environ, **OPTIONS[sanitizer]}
    return subprocess.run(fixed_addresses(program), env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("sanitizer", OPTIONS)
def test_steps_threads_callers_and_forks(sanitizer: str, tmp_path: Path) -> None:
    done = run(sanitizer, tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize(
    ("sanitizer", "line", "spoiled", "found"),
    [
        ("thread", "(&team.news, region, memory_order_release)", "(&team.news, region, memory_order_relaxed)", "data race"),
        ("thread", "atomic_store(line, value)", "atomic_store_explicit(line, value, memory_order_relaxed)", "data race"),
        ("address,undefined", "malloc(size + ALIGNMENT + sizeof(void *))", "malloc(size)", "heap-buffer-overflow"),
    ],
    ids=["begin of a region", "end of a region", "scratch memory"],
)  # fmt: skip
def test_a_spoiled_runtime_is_found(sanitizer: str, line: str, spoiled: str, found: str, tmp_path: Path) -> None:
    texts = [file.read_text(encoding="utf-8") for file in RUNTIME]
    assert sum(text.count(line) for text in texts) == 1
    runtime = [tmp_path / file.name for file in RUNTIME]
    for file, text in zip(runtime, texts, strict=True):
        file.write_text(text.replace(line, spoiled), encoding="utf-8")
    done = run(sanitizer, tmp_path, runtime)
    assert done.returncode != 0 and found in done.stderr


SCRIPT = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.targets.native.library import Library
callers = [Library(Path(sys.argv[1]), seed, 257 + seed) for seed in range(3)]
for count in (1, 2, 3, 2):
    assert callers[0].set_threads(count) == count and all(callers[0].is_right() for _ in range(5))
right = []
threads = [threading.Thread(target=lambda c=c: right.append(all(c.is_right() for _ in range(10)))) for c in callers]
for thread in threads: thread.start()
for count in (1, 3, 2, 4, 2): callers[0].set_threads(count)
for thread in threads: thread.join()
assert right == [True] * 3
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if callers[1].is_right() and callers[1].set_threads(3) == 3 and callers[1].is_right() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and callers[2].is_right()
print("done")
"""


@pytest.mark.parametrize("sanitizer", OPTIONS)
def test_compiled_kernels_under_python(sanitizer: str, tmp_path: Path) -> None:
    """LLVM's kernels are not instrumented; what they ask of the library is."""
    command, file = compiler(sanitizer, tmp_path), tmp_path / "lib.so"

    def link(objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
        inputs = map(str, (*sources, *objects))
        subprocess.run([*command, "-fPIC", "-fvisibility=hidden", "-shared", "-o", str(output), *inputs, "-lm"], check=True)

    planned = plan_memory(module())
    build_library(planned, extract_plan(planned), replace(get_target("cpu"), link=link), file)
    runtime = {"thread": "libtsan.so", "address,undefined": "libasan.so"}[sanitizer]
    found = subprocess.run([command[0], f"-print-file-name={runtime}"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, **OPTIONS[sanitizer], "LD_PRELOAD": found}
    python = [*fixed_addresses(Path(sys.executable)), "-c", SCRIPT, str(file)]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
