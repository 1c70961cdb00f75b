"""The part of libraries that is written in C: threads, barriers, scratch memory, forks, and what a library shows of itself."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import extract_plan
from cupola.runtime.artifact.plan import Plan
from cupola.targets.cpu.emit.loops import Claims, Threads, parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import argument, prim_func
from cupola.targets.registry import get_target
from tests.targets.native.library import CALLS, WIDTH, Library, expected


def stage() -> tvm.tirx.PrimFunc:
    """Three loops over what the one before wrote, the last by tasks that threads claim: out[i] = x[i] + 2 · (x[i] + x[n − 1 − i])."""

    def body() -> None:
        n = T.int64()
        x, out = argument("x", (n,), "int64"), argument("out", (n,), "int64")
        sums = T.alloc_buffer((n,), "int64", scope="global")
        twice = T.alloc_buffer((n,), "int64", scope="global")
        threads = Threads.of_region()
        claims = Claims.allocate(threads, n)
        with parallel_region():
            with shared_loop(n) as i:
                T.buffer_store(sums, x[i] + x[n - 1 - i], [i])
            with shared_loop(n, strided=True) as i:
                T.buffer_store(twice, sums[n - 1 - i] + sums[i], [i])
            with threads.each(barrier=False) as thread, claims.each(thread) as i:
                T.buffer_store(out, x[i] + twice[i], [i])

    return prim_func(body)


def module() -> tvm.IRModule:
    """As many stages, one after the other."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([tvm.tirx.Var("n", "int64")], "int64"))
    with builder.function("forward", [x], attrs={"num_input": 1}):
        kernel = builder.add_func(stage(), "stage")
        with builder.dataflow():
            state: relax.Expr = x
            for _ in range(CALLS - 1):
                state = builder.emit(relax.op.call_tir(kernel, relax.Tuple([state]), out_ty=x.ty))
            state = builder.emit_output(relax.op.call_tir(kernel, relax.Tuple([state]), out_ty=x.ty))
        builder.emit_func_output(state)
    return builder.get()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    planned = plan_memory(module())
    extracted, file = extract_plan(planned), tmp_path_factory.mktemp("runtime") / "lib.so"
    build_library(planned, extracted, get_target("cpu"), file)
    return file, extracted.plan


@pytest.fixture
def library(built: tuple[Path, Plan]) -> Iterator[Library]:
    library = Library(built[0])
    library.set_threads(2)
    yield library
    library.set_cores()
    library.set_power_saver(False)
    library.set_threads(2)


def test_a_step_of_many_regions(library: Library) -> None:
    assert ctypes.c_int32.in_dll(library.lib, "cupola_abi").value == 1
    assert all(library.is_right() for _ in range(100))
    assert library.run(0) == 0 and not library.out.any()


def test_any_number_of_threads_at_any_time(library: Library) -> None:
    """More threads than cores too: who waits lets the others run."""
    for count in (1, 3, 2, 8, 1, 1, 17, 2, 5, 4):
        assert library.set_threads(count) == count
        assert all(library.is_right() for _ in range(5))
    assert library.set_threads(0) == 1 and library.set_threads(-5) == 1 and library.is_right()
    assert library.set_threads(1 << 20) == 256 and library.is_right()


def test_threads_that_are_asleep_wake_up(library: Library) -> None:
    for _ in range(5):
        threading.Event().wait(0.02)
        assert library.is_right()


def test_calls_in_part(library: Library) -> None:
    given = (library.dims, library.pointers, library.workspace)
    for first, last in ((0, 5), (5, 5), (5, 11), (11, CALLS)):
        assert library.lib.cupola_run_calls(ctypes.c_int64(first), ctypes.c_int64(last), *given) == 0
    assert (library.out == expected(library.x)).all()


def test_the_clock_is_read_before_and_after_each_call(library: Library) -> None:
    clock = (ctypes.c_int64 * (CALLS + 2))()
    assert library.run(3, clock) == 0
    times = list(clock)
    assert times[:-1] == sorted(times[:-1]) and times[0] > 0 and times[-1] == 0


def test_a_kernel_by_its_name(library: Library, built: tuple[Path, Plan]) -> None:
    kernel = built[1].kernel("stage")
    assert [(tensor.dtype, len(tensor.shape)) for tensor in kernel.pointers] == [("int64", 1), ("int64", 1)]
    assert (kernel.numbers, len(kernel.sizes)) == ((), 1)
    assert library.lib.cupola_kernel_stage(*map(ctypes.c_void_p, library.pointers), ctypes.c_int64(WIDTH)) == 0
    assert (library.out == expected(library.x, 1)).all()


def in_threads(work: Callable[[int], bool], count: int) -> bool:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda i=i: results.append(work(i))) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(results) == count and all(results)


def test_several_callers_at_once(built: tuple[Path, Plan], library: Library) -> None:
    callers = [Library(built[0], seed, width) for seed, width in enumerate((WIDTH, 1, 1000))]
    assert in_threads(lambda i: all(callers[i].is_right() for _ in range(100)), 3)


def test_the_number_of_threads_changes_while_others_call(built: tuple[Path, Plan], library: Library) -> None:
    callers = [Library(built[0], seed) for seed in range(2)]

    def change() -> bool:
        return all(library.set_threads(count) == count for count in (1, 2, 3, 2, 1, 4) * 20)

    assert in_threads(lambda i: change() if i == 2 else all(callers[i].is_right() for _ in range(100)), 3)


def test_a_caller_that_ends_takes_its_scratch_memory_along(library: Library, built: tuple[Path, Plan]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    wide = Library(built[0], width=1 << 18)  # 4 MB of scratch memory
    assert in_threads(lambda _: wide.is_right(), 1)
    grown = []
    for _ in range(3):  # the process may grow for other reasons, but not each time
        before = resident()
        for _ in range(20):
            assert in_threads(lambda _: wide.is_right(), 1)
        grown.append(resident() - before)
    assert min(grown) < 16 << 20


FORK = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.targets.native.library import Library
library, other = Library(Path(sys.argv[1])), Library(Path(sys.argv[1]), 1)
assert library.set_threads(3) == 3 and library.is_right()
stop = threading.Event()
def busy():
    while not stop.is_set():
        assert other.is_right()
thread = threading.Thread(target=busy)
if sys.argv[2] == "busy":
    thread.start()
for depth in range(20):
    child = os.fork()
    if child == 0:  # and its children
        good = library.is_right() and len(os.listdir("/proc/self/task")) == 3 and library.set_threads(2) == 2 and library.is_right()
        if good and depth == 0:
            inner = os.fork()
            if inner == 0:
                os._exit(0 if library.is_right() and library.set_threads(4) == 4 and library.is_right() else 1)
            good = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) == 0
        os._exit(0 if good else 1)
    assert library.is_right()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
if sys.argv[2] == "busy":
    thread.join()
print("done")
"""


@pytest.mark.parametrize("beside", ["idle", "busy"])
def test_a_forked_child_has_threads_of_its_own(built: tuple[Path, Plan], beside: str) -> None:
    command = [sys.executable, "-c", FORK, str(built[0]), beside]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_two_libraries_in_one_process(built: tuple[Path, Plan], library: Library, tmp_path: Path) -> None:
    copy = tmp_path / "lib.so"
    copy.write_bytes(built[0].read_bytes())
    other = Library(copy, 5)
    assert other.set_threads(3) == 3 and library.set_threads(2) == 2
    assert in_threads(lambda i: all((library, other)[i].is_right() for _ in range(50)), 2)


SIGNAL = """
import os, signal, sys, time
from pathlib import Path
from tests.targets.native.library import Library
library = Library(Path(sys.argv[1]))
assert library.set_threads(3) == 3 and library.is_right()
masks = [line.split()[1] for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()
         for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk")]
blocked = [int(mask, 16) for mask in masks]
ours = [mask for mask in blocked if mask >> (signal.SIGTERM - 1) & 1]
assert len(ours) >= 2 and all(mask >> (signal.SIGINT - 1) & 1 and not mask >> (signal.SIGSEGV - 1) & 1 for mask in ours), masks
print("done")
"""


def test_signals_are_for_the_programs_own_threads(built: tuple[Path, Plan]) -> None:
    command = [sys.executable, "-c", SIGNAL, str(built[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


COMPANY = """
import os, subprocess, sys, time
from pathlib import Path
cores = sorted(os.sched_getaffinity(0))[: int(sys.argv[2])]
os.sched_setaffinity(0, cores)
from tests.targets.native.library import Library  # numpy has threads of its own
library = Library(Path(sys.argv[1]), width=1 << 15)
programs = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(int(sys.argv[3]))]
try:
    for count in (2, 2 * len(cores) + 1, 2):
        assert library.set_threads(count) == count
        for _ in range(8):
            assert library.is_right()
finally:
    for program in programs:
        program.kill()
    for program in programs:
        program.wait()
def allowed():
    return {tuple(sorted(os.sched_getaffinity(int(thread)))) for thread in os.listdir("/proc/self/task")}
until = time.monotonic() + 30  # who moves a thread may be stopped before it has undone that
while allowed() != {tuple(cores)} and time.monotonic() < until:
    time.sleep(0.01)
assert allowed() == {tuple(cores)}, allowed()
print("done")
"""


@pytest.mark.parametrize(("cores", "programs"), [(1, 0), (1, 2), (2, 1), (2, 4)])
def test_threads_are_stopped_for_other_programs(built: tuple[Path, Plan], cores: int, programs: int) -> None:
    """In the middle of regions; who waits moves them, and lets each run where it may as before."""
    command = [sys.executable, "-c", COMPANY, str(built[0]), str(cores), str(programs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_threads_that_sleep_while_they_wait_compute_the_same(built: tuple[Path, Plan], library: Library) -> None:
    library.set_power_saver(True)
    for count in (1, 2, 5, 3):
        assert library.set_threads(count) == count
        assert all(library.is_right() for _ in range(5))
    callers = [Library(built[0], seed) for seed in range(2)]

    def switch() -> bool:
        for number in range(40):
            library.set_power_saver(number % 2 == 0)
        return True

    assert in_threads(lambda i: switch() if i == 2 else all(callers[i].is_right() for _ in range(50)), 3)


IDLE = """
import ctypes, os, sys, time
from pathlib import Path
before = set(os.listdir("/proc/self/task"))
from tests.targets.native.library import Library
library = Library(Path(sys.argv[1]), width=1)
known = set(os.listdir("/proc/self/task"))
library.set_power_saver(sys.argv[2] == "True")
assert library.set_threads(2) == 2 and library.is_right()
(member,) = set(os.listdir("/proc/self/task")) - known
def used():  # nanoseconds on a processor, https://docs.kernel.org/scheduler/sched-stats.html
    return int(Path(f"/proc/self/task/{member}/schedstat").read_text().split()[0])
began = used()
for _ in range(50):
    assert library.run() == 0
    time.sleep(0.005)
print(used() - began)
"""


def test_an_idle_team_takes_no_processor_time_to_save_power(built: tuple[Path, Plan]) -> None:
    """By default a member watches for two milliseconds after each step, as far as other programs leave it its core."""

    def used(saves_power: bool) -> int:
        command = [sys.executable, "-c", IDLE, str(built[0]), str(saves_power)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=Path(__file__).parents[3])
        return int(done.stdout)

    assert used(True) < 50 * 400_000


TURNS = """
import ctypes, os, shutil, sys, time
from pathlib import Path
from tests.targets.native.library import Library
files = [Path(sys.argv[1]), shutil.copy(sys.argv[1], sys.argv[2])]  # a loader knows a library by its file
word, known, members = ctypes.c_int64(), set(os.listdir("/proc/self/task")), []
libraries = [Library(file, width=1) for file in files]
for library in libraries:
    if sys.argv[3] == "True":
        library.lib.cupola_share_turn(ctypes.byref(word))
    assert library.set_threads(2) == 2 and library.is_right()
    members.append((set(os.listdir("/proc/self/task")) - known).pop())
    known.add(members[-1])
def used(member):
    return int(Path(f"/proc/self/task/{member}/schedstat").read_text().split()[0])
total = 0
for _ in range(50):
    assert libraries[0].run() == 0
    began = used(members[0])
    assert libraries[1].run() == 0
    time.sleep(0.005)
    total += used(members[0]) - began
print(total)
"""


def test_a_team_leaves_the_cores_to_a_library_whose_turn_it_is(built: tuple[Path, Plan], tmp_path: Path) -> None:
    """Otherwise its member watches for two milliseconds on, where the other library's has work."""

    def used(shares: bool) -> int:
        command = [sys.executable, "-c", TURNS, str(built[0]), str(tmp_path / f"{shares}.so"), str(shares)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=Path(__file__).parents[3])
        return int(done.stdout)

    assert used(True) < used(False) / 2


CORES = """
import os, sys, time
from pathlib import Path
from tests.targets.native.library import Library
library, mine = Library(Path(sys.argv[1])), os.sched_getaffinity(0)
known, core = set(os.listdir("/proc/self/task")), max(mine)
def allowed():
    tasks = []
    for task in set(os.listdir("/proc/self/task")) - known:
        try:
            tasks.append(os.sched_getaffinity(int(task)))
        except ProcessLookupError:
            pass
    return tasks, os.sched_getaffinity(0)
def check(expected):
    assert library.is_right()
    until = time.monotonic() + 30  # a move may not be undone yet, and ended threads are seen for a while
    while allowed() != (expected, mine) and time.monotonic() < until:
        time.sleep(0.01)
    assert allowed() == (expected, mine), allowed()
for count in (1, 3):
    assert library.set_threads(count) == count
    library.set_cores(core, 1 << 20)
    check([{core}] * (count - 1))
library.set_cores(1 << 20)
check([mine] * 2)
library.set_cores(core)
pid = os.fork()
if pid == 0:
    known = set(os.listdir("/proc/self/task"))
    check([{core}] * 2)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
library.set_cores()
check([mine] * 2)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux, where threads are kept to cores")
def test_threads_keep_to_their_cores_and_the_caller_for_a_step(built: tuple[Path, Plan]) -> None:
    command = [sys.executable, "-c", CORES, str(built[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_library_needs_the_c_library_alone_and_shows_what_is_its_own(built: tuple[Path, Plan]) -> None:
    def read(*command: str) -> list[str]:
        return subprocess.run([*command, str(built[0])], capture_output=True, text=True, check=True).stdout.splitlines()

    needed = {line.split("[")[1].split("]")[0] for line in read("readelf", "-d") if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    shown = {line.split()[-1].split("@")[0] for line in read("nm", "-D", "--defined-only")}
    functions = {"abi", "run", "run_calls", "set_threads", "set_cores", "set_power_saver", "share_turn", "workspace_bytes", "kernel_stage"}
    assert shown == {f"cupola_{name}" for name in functions}
    assert any("NODELETE" in line for line in read("readelf", "-d"))
