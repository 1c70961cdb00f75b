"""AMD's GPUs as Linux's driver (amdkfd) lists them, beside the one that a library was compiled for, whose code runs on no other."""

from __future__ import annotations

import re
from pathlib import Path

NODES = Path("/sys/class/kfd/kfd/topology/nodes")  # CPUs are nodes too, of version 0
_VERSION = re.compile(r"^gfx_target_version (\d+)$", re.MULTILINE)


def architecture_fault(device: str) -> str | None:
    """The reason why no GPU here runs what was compiled for `device`; None if one does, or `device` is no architecture of AMD's."""
    if not re.fullmatch(r"gfx[0-9a-f]+", device):
        return None
    here = architectures()
    if device in here:
        return None
    return f"this machine's GPU is {' and '.join(here)}" if here else "there is no AMD GPU here, or no driver of Linux's for it"


def architectures() -> tuple[str, ...]:
    """Those of the GPUs here, such as gfx942, each once."""
    found = []
    for file in sorted(NODES.glob("*/properties")):
        version = _VERSION.search(file.read_text(encoding="ascii", errors="replace"))
        if version and (number := int(version[1])):
            found.append(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    return tuple(dict.fromkeys(found))
