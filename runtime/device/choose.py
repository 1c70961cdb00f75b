"""Chooses the library of an artifact that this machine can run."""

from __future__ import annotations

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import HOST, MANIFEST, DeviceSpec, LibrarySpec
from cupola.runtime.device.capability import capability_fault, preference
from cupola.runtime.device.kfd import architecture_fault
from cupola.runtime.errors import ArtifactError, OptionError
from cupola.runtime.machine import architecture, here, missing_features, system_here, system_of

_KINDS = (HOST, "cuda", "metal", "rocm", "webgpu")  # of devices that there is an executor for


def choose_library(artifact: Artifact, device: str | None = None) -> LibrarySpec:
    """The library of `artifact` for `device`, or the first that this machine can run; of several for NVIDIA's GPUs the nearest to its own.

    Raises:
        ArtifactError: if there is none.
        OptionError: if the artifact has none for `device`, or this machine can't run it.
    """
    libraries = artifact.manifest.libraries
    if device is not None:
        named = [library for library in libraries if library.target.device == device]  # one for each system
        found = next((library for library in named if _fault(library.target) is None), next(iter(named), None))
        if found is None:
            known = ", ".join(dict.fromkeys(library.target.device for library in libraries))
            raise OptionError(f"is {device!r:.60}, and the artifact has {known}", field="device", fix="take one of those, or leave it out")
        fault = _fault(found.target)
        if fault is not None:
            raise OptionError(f"is {device!r}: {fault[1]}", field="device", fix="leave it out")
        return found
    faults = [_fault(library.target) for library in libraries]
    fitting = [library for library, fault in zip(libraries, faults, strict=True) if fault is None]
    if fitting:
        alike = [library for library in fitting if library.target.kind == fitting[0].target.kind]
        return max(alike, key=lambda library: preference(library.target.device))  # the first of those that are equal
    file, fix = artifact.path / MANIFEST, "compile the model for this machine"
    (field, problem), *others = (fault for fault in faults if fault is not None)
    if others:
        every = "; ".join(f"{library.target.name}: {fault[1]}" for library, fault in zip(libraries, faults, strict=True) if fault)
        raise ArtifactError(f"none runs here ({every})", file=file, field="libraries", fix=fix)
    raise ArtifactError(problem, file=file, field=f"libraries[0].target.{field}", fix=fix)


def _fault(target: DeviceSpec) -> tuple[str, str] | None:
    """Why this machine can't run what was compiled for `target`: the field, and what is wrong with it."""
    if target.kind not in _KINDS:
        return "kind", f"is {target.kind!r}, this cupola runs {', '.join(_KINDS)}"
    if architecture(target.triple.partition("-")[0]) != here():
        return "triple", f"is {target.triple!r}, this machine is {here()}"
    if system_of(target.triple) != system_here():
        return "triple", f"is {target.triple!r}, this system is {system_here()}"
    missing = missing_features(target.features)
    if missing:
        return "features", f"this CPU lacks {', '.join(missing)}"
    problem = capability_fault(target.device) or architecture_fault(target.device)
    return ("device", problem) if problem else None
