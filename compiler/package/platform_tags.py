"""The platforms that a library runs on, as wheels name them.

https://packaging.python.org/en/latest/specifications/platform-compatibility-tags
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from cupola.runtime.artifact.manifest import LibrarySpec
from cupola.runtime.errors import ArtifactError, UnsupportedError
from cupola.runtime.machine import architecture, system_of
from cupola.targets.native.systems import ANDROID, MACOS

_ARM = {"aarch64": "arm64"}
_WINDOWS = {"x86_64": "amd64", "aarch64": "arm64"}
_ANDROID = {"aarch64": "arm64_v8a"}
_OLDEST_GLIBC = {"x86_64": 17, "aarch64": 17, "riscv64": 31}  # 2.…, of the oldest manylinux in use
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)(?:\.\d+)?")
_VERSIONS_NEEDED = 0x6FFFFFFE  # SHT_GNU_verneed


def platform_tag(library: LibrarySpec, file: Path) -> str:
    """The tag of machines that can load the library in `file`: of Linux's by the versions of glibc's functions that it asks for.

    Raises:
        ArtifactError: it is no library of the system that the manifest says.
        UnsupportedError: wheels have no name for the system.
    """
    triple = library.target.triple
    system, machine = system_of(triple), architecture(triple.partition("-")[0])
    match system:
        case "linux":
            minor = max([_OLDEST_GLIBC.get(machine, 17), *_glibc_versions(file)])
            return f"manylinux_2_{minor}_{machine}"
        case "macos":
            return f"macosx_{MACOS.zig.partition('.')[2].replace('.', '_')}_{_ARM.get(machine, machine)}"
        case "windows":
            return f"win_{_WINDOWS.get(machine, machine)}"
        case "android":
            return f"android_{ANDROID.zig.rpartition('.')[2]}_{_ANDROID.get(machine, machine)}"
        case _:
            raise UnsupportedError(f"is for {triple}, of which wheels know nothing", file=file, fix="choose others with --os and --arch")


def _glibc_versions(file: Path) -> Iterator[int]:
    """The minor versions of glibc 2 that an ELF library of 64 bits, little-endian, asks for."""
    data = file.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise ArtifactError("is no ELF library of 64 bits", file=file, fix="compile the model again")
    try:
        (offset,), (size, count, _) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<3H", data, 58)
        sections = [struct.unpack_from("<IIQQQQII", data, offset + i * size) for i in range(count)]
        for _, kind, _, _, start, num_bytes, link, _ in sections:
            if kind == _VERSIONS_NEEDED:
                names = sections[link]
                yield from _names(data[start : start + num_bytes], data[names[4] : names[4] + names[5]])
    except (struct.error, IndexError):
        raise ArtifactError("is cut off", file=file, fix="compile the model again") from None


def _names(needed: bytes, names: bytes) -> Iterator[int]:
    """Of a section of needed versions (Elf64_Verneed, each with its Elf64_Vernaux) those of glibc."""
    entry = 0
    while True:
        _, count, _, first, following = struct.unpack_from("<HHIII", needed, entry)
        version = entry + first
        for _ in range(count):
            _, _, _, name, next_version = struct.unpack_from("<IHHII", needed, version)
            if found := _GLIBC.fullmatch(names[name : names.index(b"\0", name)]):
                yield int(found[1])
            version += next_version
        if not following:
            return
        entry += following
