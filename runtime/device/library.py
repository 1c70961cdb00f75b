"""A compiled library: the very bytes that the manifest hashes, loaded under a name that the process never used, and its functions.

A dynamic loader looks for a library by its path's name, then by its inode, and answers with the one that it has: a second
artifact at the path of the first, or written over its files, would run the first one's code. So the library is read, checked
and loaded from a private copy (`runtime/system/private_copy.py`). A copy also stays whole when the file is overwritten.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cupola.runtime.artifact.manifest import COMPILE_AGAIN
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.device.arguments import Arguments, measure
from cupola.runtime.device.interface import Tensor
from cupola.runtime.errors import ArtifactError, EngineError
from cupola.runtime.system.private_copy import load_copy

_loaded: dict[str, Any] = {}  # by SHA-256; kept for ever: threads may be in their code, and functions refer to it
_lock = threading.Lock()
_turn = ctypes.c_int64()  # which library's step began last: threads of the others leave it the cores
_SAMPLE = 7  # of every size, for what is computed here and there
_KERNEL = "cupola_kernel_"


class Library:
    """The functions of a loaded library, which does what `plan` says (`runtime/artifact/plan.py`).

    Args:
        loaded: as ctypes has it.
        file: for errors.

    Raises:
        ArtifactError: if it lacks a function, or is not this plan's.
    """

    def __init__(self, loaded: ctypes.CDLL, plan: Plan, file: Path) -> None:
        self.plan, self.file, self._loaded = plan, file, loaded
        run, workspace_bytes, set_threads = (self._function(f"cupola_{name}") for name in ("run", "workspace_bytes", "set_threads"))
        run.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4]
        run_calls = self._function("cupola_run_calls")
        run_calls.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3]
        workspace_bytes.argtypes, workspace_bytes.restype = [ctypes.c_void_p], ctypes.c_int64
        set_threads.argtypes = [ctypes.c_int32]
        self._run, self._run_calls, self._workspace_bytes = run, run_calls, workspace_bytes
        self.set_threads: Callable[[int], int] = set_threads  # how many there should be; gives how many there are
        names = ("set_cores", "set_power_saver", "share_turn")  # older libraries and those of GPUs have none of these
        self._set_cores, self._set_power_saver, share_turn = (getattr(loaded, f"cupola_{name}", None) for name in names)
        if share_turn is not None:
            share_turn(ctypes.byref(_turn))
        self._check()

    def workspace_bytes(self, dims: ctypes.Array[ctypes.c_int64]) -> int:
        """Memory that a step of these sizes, in the plan's order, takes for what lies between its calls."""
        return int(self._workspace_bytes(dims))

    def set_cores(self, cores: Sequence[int]) -> None:
        """Keeps its threads to these cores, where it can; none are any."""
        if self._set_cores is not None:
            self._set_cores((ctypes.c_int32 * len(cores))(*cores), ctypes.c_int32(len(cores)))

    def set_power_saver(self, is_on: bool) -> bool:
        """Lets threads that wait sleep, or watch as by default. Returns whether it can."""
        if self._set_power_saver is not None:
            self._set_power_saver(ctypes.c_int32(is_on))
        return self._set_power_saver is not None

    def run(self, num_steps: int, arguments: Arguments, workspace: int, clock: ctypes.Array[ctypes.c_int64] | None) -> None:
        """Runs `forward` so many times in a row. `workspace` is an address; `clock` takes the start, and when each call ended.

        Raises:
            EngineError: if a kernel fails.
        """
        self._check_run(self._run(num_steps, arguments.dims, arguments.pointers, workspace, clock))

    def run_calls(self, first: int, last: int, arguments: Arguments, workspace: int) -> None:
        """Runs the plan's calls from `first` to before `last`. Raises as `run`."""
        self._check_run(self._run_calls(first, last, arguments.dims, arguments.pointers, workspace))

    def _check_run(self, code: int) -> None:
        if code:
            raise EngineError(f"the compiled model failed: call {code - 1}, of {self.plan.calls[code - 1].kernel}")

    def run_kernel(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Runs one kernel that takes nothing but tensors.

        Raises:
            EngineError: if they are not what it takes, or it fails.
        """
        kernel = self.plan.kernel(name)
        sizes = measure(kernel.pointers, tensors)
        pointers = [ctypes.c_void_p(tensor.address) for tensor in tensors]
        if self._function(_KERNEL + name)(*pointers, *(ctypes.c_int64(sizes[size]) for size in kernel.sizes)):
            raise EngineError(f"the kernel {name} failed")

    def _function(self, name: str) -> Any:
        try:
            return self._loaded[name]
        except AttributeError:
            raise ArtifactError(f"lacks the function {name}", file=self.file, fix=COMPILE_AGAIN) from None

    def _check(self) -> None:
        try:
            abi = ctypes.c_int32.in_dll(self._loaded, "cupola_abi").value
        except ValueError:
            abi = 0
        if abi != self.plan.abi:
            raise ArtifactError(f"is {abi}, and the plan's {self.plan.abi}", file=self.file, field="cupola_abi", fix=COMPILE_AGAIN)
        for kernel in self.plan.kernels:
            self._function(_KERNEL + kernel.name)
        dims = (ctypes.c_int64 * len(self.plan.dims))(*[_SAMPLE] * len(self.plan.dims))
        _, planned = self.plan.layout(dict.fromkeys(self.plan.dims, _SAMPLE))
        if (found := self.workspace_bytes(dims)) != planned:
            problem = f"is {found} where the plan's is {planned}"
            raise ArtifactError(problem, file=self.file, field="cupola_workspace_bytes", fix=COMPILE_AGAIN)


def load_library(file: Path, sha256: str, load: Callable[[str], Any]) -> Any:
    """Applies `load` to a private copy of `file`; gives the same object again for a library of the same content.

    Args:
        file: the library.
        sha256: of its content, in hexadecimal, as the manifest states it.
        load: takes the copy's path, which is gone afterwards.

    Raises:
        ArtifactError: if the file can't be read, or has other content.
        Exception: what `load` raises.
    """
    content = read_hashed(file, sha256)
    with _lock:
        if sha256 not in _loaded:
            _loaded[sha256] = load_copy(content, load)
        return _loaded[sha256]


def read_hashed(file: Path, sha256: str) -> bytes:
    """A file's content, which must have that hash. Raises ArtifactError."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"can't be read: {error.strerror}", file=file, fix="copy or compile it again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(
            "does not match its SHA-256 in the manifest", file=file, fix="it was replaced or changed; open the artifact again"
        )
    return content
