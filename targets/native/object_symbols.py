"""Symbols of LLVM's objects that others must not see, where ziglang's linker takes no list of those that they may.

TVM exports every kernel. In objects for macOS a symbol's type has a bit that keeps it within the library (`N_PEXT` of Apple's
`mach-o/nlist.h`). In those for Windows the section `.drectve` tells the linker what to export (Microsoft's "PE Format", "The .drectve
Section").
"""

from __future__ import annotations

import struct
from pathlib import Path

_MACH_O_64, _SYMTAB = 0xFEEDFACF, 0x2
_MACH_HEADER_BYTES, _NLIST_BYTES, _TYPE_AT = 32, 16, 4  # of a symbol: its name's place (4 bytes), its type (1)
_N_EXT, _N_PEXT, _N_TYPE = 0x01, 0x10, 0x0E
_COFF_HEADER_BYTES, _SECTION_BYTES, _SIZE_AT = 20, 40, 16


def hide_mach_o(file: Path) -> None:
    """Keeps all symbols that the object defines within the library that it becomes a part of."""
    data = bytearray(file.read_bytes())
    magic, _, _, _, num_commands = struct.unpack_from("<5I", data)
    assert magic == _MACH_O_64
    at = _MACH_HEADER_BYTES
    for _ in range(num_commands):
        command, size, symbols, count = struct.unpack_from("<4I", data, at)
        for symbol in range(symbols, symbols + count * _NLIST_BYTES, _NLIST_BYTES) if command == _SYMTAB else ():
            kind = data[symbol + _TYPE_AT]
            if kind & _N_EXT and kind & _N_TYPE:  # not one that is wanted of others
                data[symbol + _TYPE_AT] = kind | _N_PEXT
        at += size
    file.write_bytes(data)


def hide_coff(file: Path) -> None:
    """Forgets what the object tells the linker to export."""
    data = bytearray(file.read_bytes())
    (num_sections,), (optional,) = struct.unpack_from("<H", data, 2), struct.unpack_from("<H", data, 16)
    first = _COFF_HEADER_BYTES + optional
    for section in range(first, first + num_sections * _SECTION_BYTES, _SECTION_BYTES):
        if data[section : section + 8] == b".drectve":
            size, start = struct.unpack_from("<2I", data, section + _SIZE_AT)
            data[start : start + size] = b" " * size
    file.write_bytes(data)
