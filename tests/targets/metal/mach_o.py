"""The headers of a library for macOS (Apple's `mach-o/loader.h` and `nlist.h`, and `cs_blobs.h` of its kernel)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

ARM64, DYLIB = 0x0100000C, 6
_MAGIC, _SYMTAB, _LOAD_DYLIB, _ID_DYLIB, _CODE_SIGNATURE, _BUILD_VERSION = 0xFEEDFACF, 0x2, 0xC, 0xD, 0x1D, 0x32
_SIGNATURE, _DIRECTORY, _ADHOC = 0xFADE0CC0, 0xFADE0C02, 0x2
_EXTERNAL, _HIDDEN, _TYPE = 0x01, 0x10, 0x0E


@dataclass(frozen=True)
class Dylib:
    """The system is macOS's least version; `defined` and `wanted` are symbols that others see, and that others must have.
    `is_signed`: every page has the hash that the signature says."""

    processor: int
    kind: int
    name: str
    system: tuple[int, int]
    libraries: tuple[str, ...]
    defined: frozenset[str]
    wanted: frozenset[str]
    is_signed: bool


def read_dylib(file: Path) -> Dylib:
    data = file.read_bytes()
    magic, processor, _, kind, num_commands = struct.unpack_from("<5I", data)
    assert magic == _MAGIC
    found: dict[int, list[bytes]] = {}
    at = 32
    for _ in range(num_commands):
        command, size = struct.unpack_from("<2I", data, at)
        found.setdefault(command, []).append(data[at : at + size])
        at += size
    platform, version = struct.unpack_from("<2I", found[_BUILD_VERSION][0], 8)
    assert platform == 1  # macOS
    symbols = _symbols(data, *struct.unpack_from("<4I", found[_SYMTAB][0], 8))
    external = {name: kind for name, kind in symbols if kind & _EXTERNAL and not kind & _HIDDEN}
    return Dylib(
        processor=processor,
        kind=kind,
        name=_text(found[_ID_DYLIB][0]),
        system=(version >> 16, version >> 8 & 0xFF),
        libraries=tuple(map(_text, found[_LOAD_DYLIB])),
        defined=frozenset(name for name, kind in external.items() if kind & _TYPE),
        wanted=frozenset(name for name, kind in external.items() if not kind & _TYPE),
        is_signed=_is_signed(data, *struct.unpack_from("<2I", found[_CODE_SIGNATURE][0], 8)),
    )


def _symbols(data: bytes, start: int, count: int, strings: int, _: int) -> list[tuple[str, int]]:
    entries = [struct.unpack_from("<IB", data, start + 16 * i) for i in range(count)]
    return [(data[strings + at : data.index(b"\0", strings + at)].decode(), kind) for at, kind in entries]


def _text(command: bytes) -> str:
    """The string of a command, whose place its third word says."""
    return command[struct.unpack_from("<I", command, 8)[0] :].partition(b"\0")[0].decode()


def _is_signed(data: bytes, start: int, _: int) -> bool:
    """True if the code directory, the first part of the signature, is nobody's in particular, and holds the hashes of all pages."""
    magic, _, _, _, offset = struct.unpack_from(">5I", data, start)
    directory = start + offset
    kind, _, _, flags, hashes, _, _, count, limit = struct.unpack_from(">9I", data, directory)
    hash_size, algorithm, _, page_bits = struct.unpack_from("4B", data, directory + 36)
    assert (magic, kind, hash_size, algorithm) == (_SIGNATURE, _DIRECTORY, 32, 2)  # SHA-256
    pages = [data[at : min(at + (1 << page_bits), limit)] for at in range(0, limit, 1 << page_bits)]
    expected = [data[directory + hashes + 32 * i :][:32] for i in range(count)]
    return bool(flags & _ADHOC) and limit == start and [hashlib.sha256(page).digest() for page in pages] == expected
