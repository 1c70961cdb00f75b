"""The operating systems that libraries are made for, each from any machine: what LLVM and the linker must know of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cupola.runtime.machine import here, system_here

ELF, MACH_O, COFF = "ELF", "Mach-O", "COFF"
_BIONIC = Path(__file__).with_name("bionic")  # headers for what libraries use of Android's C library


@dataclass(frozen=True)
class System:
    """One operating system.

    Attributes:
        name: for `--os`, and what follows `@` in a target's name.
        llvm: the triple behind the architecture, as LLVM has it.
        zig: the same for ziglang's compiler, with the oldest system that libraries run on.
        format: of objects.
        suffix: of libraries.
        architectures: what there are machines of.
        compiling: flags for C.
        linking: flags for the linker.
        libraries: of the system, without `lib`; where nobody brings those, functions that they have, which stand in for them.
        oldest: the same as `zig` for people.
    """

    name: str
    llvm: str
    zig: str
    format: str
    suffix: str
    architectures: tuple[str, ...]
    compiling: tuple[str, ...]
    linking: tuple[str, ...]
    oldest: str
    libraries: tuple[str, ...] = ()

    def triple(self, architecture: str) -> str:
        """LLVM's name of such a machine."""
        return f"{architecture}-{self.llvm}"


# A library's threads outlive whoever loaded it, asleep in its code: to unload it would take that away from under them, and nobody could
# join them from DllMain or a destructor, where the loader's lock is held. So it stays in memory once it is there. ELF has a flag. For
# Windows and macOS linkers have none: the library asks to be pinned before it starts a thread (`stay` of cores.c).
_STAYS = "-Wl,-z,nodelete"
_WHOLE = "-Wl,--no-undefined"

LINUX = System(
    "linux", "linux-gnu", "linux-gnu.2.28", ELF, ".so", ("x86_64", "aarch64", "riscv64"),
    ("-fPIC", "-pthread"), ("-pthread", _STAYS, _WHOLE, "-lm"), "glibc 2.28")  # fmt: skip
# Nobody links against the library, so that its own name is of no use but must not be a path of this machine.
MACOS = System(
    "macos", "apple-macosx13.0", "macos.13.0", MACH_O, ".dylib", ("aarch64", "x86_64"),
    ("-fPIC",), ("-Wl,-install_name,@rpath/lib.dylib",), "macOS 13")  # fmt: skip
WINDOWS = System(
    "windows", "pc-windows-gnu", "windows.win10-gnu", COFF, ".dll", ("x86_64", "aarch64"),
    ("-pthread",), ("-pthread", "-Wl,-s"), "Windows 10")  # fmt: skip
# Android 15 has machines with pages of 16 KB; its linker wants libraries by name, without versions of symbols.
ANDROID = System(
    "android", "unknown-linux-android", "linux-android.29", ELF, ".so", ("aarch64", "x86_64"),
    ("-fPIC", "-isystem", str(_BIONIC)), ("-nostdlib", _STAYS, _WHOLE, "-Wl,-z,max-page-size=16384"), "Android 10",
    libraries=("c", "m"))  # fmt: skip

PHONES = "cpu:dotprod@android,cpu:neon@android"  # targets for Android's phones, the best first

SYSTEMS = {system.name: system for system in (LINUX, MACOS, WINDOWS, ANDROID)}


def this_system() -> System:
    """The one that this machine runs; Linux where it is none of them, whose libraries then don't load here."""
    return SYSTEMS.get(system_here(), LINUX)


def is_here(system: System, architecture: str) -> bool:
    """True if this machine is such a one."""
    return system.name == system_here() and architecture == here()
