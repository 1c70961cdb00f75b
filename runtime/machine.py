"""What this machine is and can run: the one place that reads it, for the compiler's targets as for whoever loads an artifact."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from cupola.runtime.artifact import MANIFEST, Artifact, LibrarySpec, TargetSpec
from cupola.runtime.errors import ArtifactError, OptionError

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = {"linux": ("linux",), "android": ("linux", "android"), "darwin": ("darwin", "macos", "apple"), "win32": ("windows", "win32")}
# Linux's names for Arm features that LLVM calls otherwise; the rest differ in punctuation only (avx512_vnni, avx512vnni).
_FEATURE_ALIASES = {"neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "lse": "atomics"}
_ON_REQUEST = "amx"  # how features begin whose registers Linux keeps from a process until it asks for them
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), in https://docs.kernel.org/arch/x86/xstate.html
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def choose_library(artifact: Artifact, isa: str | None = None) -> LibrarySpec:
    """The library of `artifact` for instruction set `isa`, or the first that this machine can run.

    Raises:
        ArtifactError: if there is none.
        OptionError: if the artifact has none for `isa`, or this machine can't run it.
    """
    libraries = artifact.manifest.libraries
    if isa is not None:
        found = next((library for library in libraries if library.target.isa == isa), None)
        if found is None:
            known = ", ".join(library.target.isa for library in libraries)
            raise OptionError(f"is {isa!r:.60}, and the artifact has {known}", field="isa", fix="take one of those, or leave it out")
        fault = _fault(found.target)
        if fault is not None:
            raise OptionError(f"is {isa!r}: {fault[1]}", field="isa", fix="leave it out")
        return found
    faults = [_fault(library.target) for library in libraries]
    for library, fault in zip(libraries, faults, strict=True):
        if fault is None:
            return library
    file, fix = artifact.path / MANIFEST, "compile the model for this machine"
    (field, problem), *others = (fault for fault in faults if fault is not None)
    if others:
        every = "; ".join(f"{library.target.name}: {fault[1]}" for library, fault in zip(libraries, faults, strict=True) if fault)
        raise ArtifactError(f"none runs here ({every})", file=file, field="libraries", fix=fix)
    raise ArtifactError(problem, file=file, field=f"libraries[0].target.{field}", fix=fix)


def _fault(target: TargetSpec) -> tuple[str, str] | None:
    """Why this machine can't run what was compiled for `target`: the field, and what is wrong with it."""
    architecture, _, rest = target.triple.partition("-")
    if _architecture(architecture) != here():
        return "triple", f"is {target.triple!r}, this machine is {here()}"
    if not any(name in rest for name in _SYSTEMS.get(sys.platform, (sys.platform,))):
        return "triple", f"is {target.triple!r}, this system is {sys.platform}"
    missing = missing_features(target.features)
    return ("features", f"this CPU lacks {', '.join(missing)}") if missing else None


def here() -> str:
    """This machine's architecture as LLVM's triples have it, such as x86_64 or aarch64."""
    return _architecture(platform.machine())


def missing_features(features: Sequence[str]) -> list[str]:
    """Those of `features`, in Linux's or LLVM's spelling, that this process can't use; none where the system does not list any.

    What Linux grants on request only is asked for here, and so is the process's from then on.
    """
    flags = cpu_flags()
    missing = [name for name in features if flags is not None and _flag(name) not in flags]
    if not missing and any(_flag(name).startswith(_ON_REQUEST) for name in features) and not _request_tiles():
        return [name for name in features if _flag(name).startswith(_ON_REQUEST)]
    return missing


def cpu_flags() -> frozenset[str] | None:
    """The CPU's features, without punctuation; None where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(map(_plain, value.split()))
    return None


@functools.cache
def _request_tiles() -> bool:
    """Asks Linux for the tile registers of AMX, for all threads of this process; whether it has them then."""
    if not sys.platform.startswith("linux") or here() != "x86_64":
        return False
    syscall = ctypes.CDLL(None).syscall
    syscall.restype, arguments = ctypes.c_long, (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return bool(syscall(*map(ctypes.c_long, arguments)) == 0)


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name.lower(), name.lower())


def _flag(feature: str) -> str:
    name = feature.removeprefix("+").lower()
    return _plain(_FEATURE_ALIASES.get(name, name))


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(".", "").replace("-", "")
