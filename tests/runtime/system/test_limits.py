"""Work ends when its processor time is used up, native code too, and memory is bounded where the system has a bound."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cupola.runtime.system import limits
from tests.runtime.system.children import FOLDER
from tests.systems import WITHOUT_POSIX, needs

WAYS_OF_TIME = ["the clock"] if WITHOUT_POSIX else ["a timer", "the clock"]
HEAD = "import time\nfrom cupola.runtime.system.limits import Allowance, limit_memory\n"
NATIVE = "import re; re.match('(a+)+$', 'a' * 60 + 'b')"  # one call that never ends, and keeps the interpreter's lock


def run(code: str, way: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(FOLDER)} if way == "the clock" else {})}
    return subprocess.run([sys.executable, "-c", HEAD + code], env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("way", WAYS_OF_TIME)
@pytest.mark.parametrize("work", [NATIVE, "while True: pass"], ids=["native", "Python"])
def test_work_ends_with_its_allowance(way: str, work: str) -> None:
    done = run(f"with Allowance(0.3):\n {work}\nprint('went on')", way)
    assert done.stdout == "" and done.returncode == (-signal.SIGPROF if way == "a timer" else 1)


@pytest.mark.parametrize("way", WAYS_OF_TIME)
def test_what_is_left_stays_and_rest_costs_nothing(way: str) -> None:
    code = """
allowance = Allowance(0.5)
for _ in range(3):
    with allowance:
        start = time.process_time()
        while time.process_time() < start + 0.1: pass
    time.sleep(0.2)
print(allowance.seconds)
allowance.add(100, most=0.4)
print(allowance.seconds)
time.sleep(2)
"""
    done = run(code, way)
    left, most = map(float, done.stdout.split())
    assert 0.05 < left < 0.21 and most == 0.4 and done.returncode == 0, done


@pytest.mark.parametrize("way", WAYS_OF_TIME)
def test_an_allowance_is_used_up_bit_by_bit(way: str) -> None:
    code = "a = Allowance(0.2)\nwhile True:\n with a:\n  start = time.process_time()\n  while time.process_time() < start + 0.03: pass"
    start = time.monotonic()
    assert run(code, way).returncode != 0 and time.monotonic() - start < 60


@needs("limits of memory")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere address space can't be limited, or takes other amounts")
def test_a_huge_allocation_fails() -> None:
    code = "assert limit_memory(4 << 30)\ntry:\n bytearray(5 << 30)\nexcept MemoryError:\n print('failed')"
    assert run(code, "a timer").stdout == "failed\n"
    lower = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); limit_memory(4 << 30)\n"
    assert run(f"{lower}print(resource.getrlimit(resource.RLIMIT_AS))", "a timer").stdout == f"{(2 << 30, 2 << 30)}\n"


def test_where_memory_is_not_limited_that_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    limits.warn_of_unlimited_memory.cache_clear()
    monkeypatch.setattr(limits, "memory_is_limited", lambda: False)
    with caplog.at_level(logging.WARNING, "cupola"):
        for _ in range(3):
            limits.warn_of_unlimited_memory()
    assert ["limits no process's memory" in record.message for record in caplog.records] == [True]


def test_memory_is_limited_on_linux_and_windows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.memory_is_limited() is (not WITHOUT_POSIX)
    for platform, is_limited in (("darwin", False), ("win32", True)):
        monkeypatch.setattr(sys, "platform", platform)
        assert limits.memory_is_limited() is is_limited


def test_the_structure_of_windows_has_its_size() -> None:
    assert ctypes.sizeof(limits._JobLimits) == 144 and limits._JobLimits.process_memory.offset == 112


def test_it_imports_nothing_of_cupola() -> None:
    imports = [line.split()[1] for line in Path(limits.__file__).read_text().splitlines() if line.startswith(("import ", "from "))]
    assert imports and not any(name.startswith("cupola") for name in imports)
