"""Whether this machine can run what an artifact was compiled for."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from cupola.runtime.artifact import MANIFEST, Artifact
from cupola.runtime.errors import ArtifactError

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = {"linux": ("linux",), "android": ("linux", "android"), "darwin": ("darwin", "macos", "apple"), "win32": ("windows", "win32")}
# Linux's names for Arm features that LLVM calls otherwise; the rest differ in punctuation only (avx512_vnni, avx512vnni).
_FEATURE_ALIASES = {"neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "lse": "atomics"}


def check_machine(artifact: Artifact) -> None:
    """Raises ArtifactError if the artifact's library is for another architecture, system or set of CPU features."""
    target, file = artifact.manifest.target, artifact.path / MANIFEST
    architecture, _, rest = target.triple.partition("-")
    here = _architecture(platform.machine())
    if _architecture(architecture) != here:
        raise ArtifactError(
            f"is {target.triple!r}, this machine is {here}", file=file, field="target.triple", fix="compile the model for this machine"
        )
    if not any(name in rest for name in _SYSTEMS.get(sys.platform, (sys.platform,))):
        raise ArtifactError(
            f"is {target.triple!r}, this system is {sys.platform}",
            file=file,
            field="target.triple",
            fix="compile the model for this system",
        )
    flags = cpu_flags()
    missing = [name for name in target.features if flags is not None and _flag(name) not in flags]
    if missing:
        raise ArtifactError(
            f"this CPU lacks {', '.join(missing)}", file=file, field="target.features", fix="compile the model on this machine"
        )


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


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name.lower(), name.lower())


def _flag(feature: str) -> str:
    name = feature.removeprefix("+").lower()
    return _plain(_FEATURE_ALIASES.get(name, name))


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(".", "").replace("-", "")
