"""Processes of ours are out of a terminal's reach, and say what processor time they had where the system does."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from cupola.runtime.system.memory import address_space, machine_memory
from cupola.runtime.system.processes import apart, processor_seconds
from tests.systems import needs

WORK = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"


@needs("sessions")
def test_a_process_has_a_session_of_its_own() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, **apart()) as process:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)


@needs("to know another process's time")
def test_the_time_of_a_process_is_known_while_it_lives() -> None:
    with subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **apart()) as process:
        assert process.stdout is not None and process.stdout.readline()
        seconds = processor_seconds(process)
        times = psutil.Process(process.pid).cpu_times()
    assert seconds is not None and abs(seconds - times.user - times.system) < 0.1
    assert processor_seconds(process) is None  # it is gone


@needs("to know the machine's memory")
def test_the_system_says_what_memory_there_is() -> None:
    assert machine_memory() == psutil.virtual_memory().total
    space = address_space()
    assert space is not None and abs(space - psutil.Process().memory_info().vms) < 64 << 20
