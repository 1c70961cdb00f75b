"""Too little memory, address space or threads gives one line."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from cupola.compiler.cli import shortage as module
from cupola.compiler.cli.shortage import shortage


def system_says(number: int, text: str) -> OSError:
    return OSError(number, text)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), "there is not enough memory"),
        (system_says(errno.ENOMEM, "Cannot allocate memory"), "there is not enough memory"),
        (ImportError("/x/lib.so: failed to map segment from shared object"), "there is not enough memory"),
        (OSError("/x/lib.so: cannot create shared object descriptor: Cannot allocate memory"), "there is not enough memory"),
        (OSError("/x/lib.so: cannot allocate memory in static TLS block"), None),
        (RuntimeError("std::bad_alloc"), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "the system lets this process start no more threads (raise `ulimit -u`)"),
        (system_says(errno.ENOENT, "No such file or directory"), None),
        (ImportError("No module named 'x'"), None),
        (ValueError("can't start new thread"), None),
    ],
)
def test_what_was_lacking_is_told(error: Exception, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_address_space_limit", lambda: None)
    assert shortage(error) == found


def test_a_limit_of_address_space_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_address_space_limit", lambda: 300 << 20)
    assert shortage(MemoryError()) == "there is not enough memory (this process may use 300 MiB of address space; raise `ulimit -v`)"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere address space can't be limited, or takes other amounts")
@pytest.mark.parametrize("kilobytes", [24_576, 33_792])
def test_the_command_line_says_in_one_line_that_it_has_too_little_address_space(kilobytes: int, tmp_path: Path) -> None:
    arguments = [sys.executable, "-P", "-m", "cupola", "run", str(tmp_path), "-p", "hi"]
    command = ["sh", "-c", f'ulimit -v {kilobytes}; exec "$@"', "sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    wanted = f"error: there is not enough memory (this process may use {kilobytes >> 10} MiB of address space; raise `ulimit -v`)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", wanted)
