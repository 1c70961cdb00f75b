"""The one file that reads the environment, and says how child interpreters are started.

CUPOLA_DEBUG        0 nothing, 1 stages and times, 2 each pass, 3 numbered IR dumps, 4 kernel source
CUPOLA_CACHE        where compiled artifacts are kept (default: $XDG_CACHE_HOME/cupola or ~/.cache/cupola)
CUPOLA_API_KEY      what clients of `cupola serve` must send
CUPOLA_NUM_THREADS  threads that kernels use (default: the cores that this process may keep busy, of those the fast ones)
WGPU_LIB_PATH       the file of wgpu-native (default: that of pip's package wgpu, which reads this too)
OPENAI_API_KEY      what `cupola bench-serve` shows the server, as OpenAI's own client does
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from cupola.runtime.errors import OptionError
from cupola.runtime.machine import usable_cores

MAX_THREADS = 1024


def _integer(name: str, default: int, lowest: int, highest: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9 or not lowest <= int(text) <= highest:
        problem = f"is {text!r:.60}, not a whole number from {lowest} to {highest}"
        raise OptionError(problem, field=name, fix=f"unset it or give one, such as {name}={default}")
    return int(text)


def interpreter() -> list[str]:
    """How a command line begins that starts this Python again.

    -P keeps the current folder off the child's path, and a script's own: files there, such as a `typer.py` that came with a
    model, would be run in place of the modules of their names.
    """
    return [sys.executable, "-P"]


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: this one's, and some variables beside it or in the place of its own."""
    return {**os.environ, **variables}


def debug_level() -> int:
    """The step of the debugging ladder, 0 to 4."""
    return _integer("CUPOLA_DEBUG", 0, 0, 4)


def num_threads(most: int = MAX_THREADS) -> int:
    """Threads that work in parallel: what the user asks for, else the cores this process may keep busy, at most so many."""
    return _integer("CUPOLA_NUM_THREADS", min(most, usable_cores()), 1, MAX_THREADS)


def api_key() -> str | None:
    """The key that a server demands of its clients; None if there is none."""
    return os.environ.get("CUPOLA_API_KEY") or None


def wgpu_library() -> str | None:
    """The library of WebGPU to take instead of pip's; None: no other one."""
    return os.environ.get("WGPU_LIB_PATH") or None


def cache_folder() -> Path:
    """Where compiled artifacts are kept between runs."""
    chosen = os.environ.get("CUPOLA_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cupola"


def openai_api_key() -> str | None:
    """The key for a server that wants one, by the name that OpenAI's clients read."""
    return os.environ.get("OPENAI_API_KEY") or None
