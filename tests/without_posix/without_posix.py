"""Takes from the runtime what systems such as Windows lack: modules, names, descriptors handed down, /proc and /sys.

    PYTHONPATH=tests/without_posix .venv/bin/pytest tests/runtime

Child processes inherit it. The standard library and other packages, which have versions of their own for such systems, go on with what
this system has: an import by a file of cupola's runtime, its facade or its command line gives a stand-in for the module, without the names.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    *(f"{ROOT / folder}{os.sep}" for folder in ("runtime", "cupola/runtime", "compiler/cli", "cupola/compiler/cli")),
    *(str(ROOT / "cupola" / file) for file in ("__init__.py", "__main__.py")),
)
LIBRARY = os.path.dirname(os.__file__)
FOLDERS = ("/proc", "/sys", "/dev/shm")
MODULES = frozenset("fcntl grp posix pty pwd resource spwd syslog termios tty nis crypt _posixsubprocess _posixshmem uvloop".split())
HANDED_DOWN = ("pass_fds", "preexec_fn", "start_new_session", "process_group", "user", "group", "extra_groups", "umask")
# Module -> the names that it lacks on Windows, as typeshed has them (tests/runtime/system/test_without_posix.py).
NAMES: Mapping[str, str] = {
    "os": r"""
        (?!EX_OK|F_OK)(CLD|EFD|EX|F|GRND|MFD|POSIX|PRIO|RTLD|RWF|SCHED|SPLICE|ST|XATTR)_\w+ | W[A-Z]+ | SEEK_(DATA|HOLE) | NGROUPS_MAX
        | O_(ACCMODE|ASYNC|CLOEXEC|DIRECT|DIRECTORY|DSYNC|FSYNC|LARGEFILE|NDELAY|NOATIME|NOCTTY|NOFOLLOW|NONBLOCK|PATH|RSYNC|SYNC|TMPFILE)
        | P_(ALL|PGID|PID|PIDFD) | (f|l)?chown | chroot | confstr(_names)? | copy_file_range | ctermid | environb | eventfd(_read|_write)?
        | fchdir | fchmod | fdatasync | fork(pty)? | f?pathconf(_names)? | f?statvfs | fwalk | [gs]et_blocking
        | [gs]ete?[ug]id | [gs]etres[ug]id | setre[ug]id | getenvb | [gs]etgroups | getgrouplist | initgroups | getloadavg | [gs]etpgid
        | [gs]etpgrp | [gs]etpriority | getrandom | [gs]etsid | (get|set|list|remove)xattr | killpg | lockf | login_tty | major | minor
        | makedev | mem(fd)_create | mkfifo | mknod | nice | openpty | pidfd_open | pipe2 | posix_\w+ | p?(read|write)v | pread | pwrite
        | register_at_fork | sched_\w+ | sendfile | spawn[lv]pe? | splice | struct_rusage | sync | sysconf(_names)? | tc[gs]etpgrp | ttyname
        | uname | wait | wait[34] | waitid(_result)?""",
    "signal": r"""
        SIG(ALRM|BUS|CHLD|CLD|CONT|HUP|IO|IOT|KILL|PIPE|POLL|PROF|PWR|QUIT|RTMAX|RTMIN|STKFLT|STOP|SYS|TRAP|TSTP|TTIN|TTOU|URG|USR1|USR2)
        | SIG(VTALRM|WINCH|XCPU|XFSZ) | SIG_(BLOCK|SETMASK|UNBLOCK) | Sigmasks | ITIMER_\w+ | ItimerError | alarm | [gs]etitimer | pause
        | pidfd_send_signal | pthread_(kill|sigmask) | siginterrupt | sigpending | sigtimedwait | sigwait(info)? | struct_siginfo""",
    "socket": r"""
        AF_(ALG|ASH|ATMPVC|ATMSVC|AX25|BRIDGE|CAN|ECONET|KEY|LLC|NETBEUI|NETLINK|NETROM|PACKET|PPPOX|QIPCRTR|RDS|ROSE|ROUTE|SECURITY|TIPC)
        | AF_(UNIX|VSOCK|WANPIPE|X25) | (ALG|CAN|CMSG|HCI|IPX|J1939|NETLINK|PACKET|PF|RDS|SCM|TIPC|UDPLITE|VMADDR|VM|IOCTL_VM)_\w+
        | BTPROTO_(HCI|L2CAP|SCO) | EAI_(ADDRFAMILY|OVERFLOW|SYSTEM) | IPPROTO_(GRE|IPIP|MPTCP|RSVP|TP|UDPLITE)
        | IPV6_(DSTOPTS|NEXTHOP|PATHMTU|RECV(?!RTHDR|TCLASS)\w+|RTHDR(DSTOPTS|_TYPE_0)) | IP_(BIND_ADDRESS_NO_PORT|DEFAULT_MULTICAST_LOOP)
        | IP_(DEFAULT_MULTICAST_TTL|MAX_MEMBERSHIPS|RECVOPTS|RECVRETOPTS|RETOPTS|TRANSPARENT)
        | MSG_(CMSG_CLOEXEC|CONFIRM|DONTWAIT|EOF|EOR|FASTOPEN|MORE|NOSIGNAL) | SOCK_(CLOEXEC|NONBLOCK)
        | SOL_(ALG|ATALK|AX25|CAN_BASE|CAN_RAW|HCI|IPX|NETROM|RDS|ROSE|TIPC|UDPLITE)
        | SO_(BINDTODEVICE|DOMAIN|INCOMING_CPU|J1939_\w+|MARK|PASSCRED|PASSSEC|PEERCRED|PEERSEC|PRIORITY|PROTOCOL|REUSEPORT|VM_\w+)
        | TCP_(CONGESTION|CORK|DEFER_ACCEPT|INFO|LINGER2|NOTSENT_LOWAT|QUICKACK|SYNCNT|USER_TIMEOUT|WINDOW_CLAMP)
        | recv_fds | send_fds | sethostname""",
    "select": r"EPOLL\w+ | POLL\w+ | PIPE_BUF | e?poll | devpoll | kqueue | kevent | KQ_\w+",
    "selectors": r"(Epoll|Poll|Devpoll|Kqueue)Selector",
    "mmap": r"(MADV|MAP|PROT)_\w+",
    "time": r"CLOCK_\w+ | clock_(get|set)\w+ | pthread_getcpuclockid | tzset",
    "subprocess": "(?!)",
}  # fmt: skip


def lacks(module: str, name: str) -> bool:
    """True for a name that the module has not on Windows."""
    return module in NAMES and re.fullmatch(NAMES[module], name, re.VERBOSE) is not None


def install() -> None:
    """Takes it all away, in this process."""
    real = builtins.__import__

    def import_for_us(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if globals is None or not is_ours(str(globals.get("__file__"))):
            return real(name, globals, locals, fromlist, level)
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        found = real(name, globals, locals, fromlist, level)
        return stand_in(found) if found.__name__ in NAMES else found

    builtins.__import__ = import_for_us
    sys.addaudithook(_refuse_folders)


def is_ours(file: str) -> bool:
    """True for a file of the runtime, the facade or the command line."""
    return file.startswith(OURS)


@cache
def stand_in(module: ModuleType) -> ModuleType:
    """A module with all of another one's names but those that Windows lacks."""
    made = _Module(module)
    if module is os:
        made.rename = _rename
    elif module is subprocess:
        made.Popen = _Popen
        for name in ("run", "call", "check_call", "check_output"):
            setattr(made, name, _checked(getattr(module, name)))
    elif module.__name__ == "socket":
        made.socketpair = _socketpair
    return made


class _Module(ModuleType):
    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        if lacks(self.__name__, name):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}, as on Windows", name=name, obj=self)
        return getattr(self.__dict__["_module"], name)


class _Popen(subprocess.Popen):  # type: ignore[type-arg]
    def __init__(self, *_args: Any, **_options: Any) -> None:
        _check(_options)
        super().__init__(*_args, **_options)


def _checked(function: Any) -> Any:
    def run(*_args: Any, **_options: Any) -> Any:
        _check(_options)
        return function(*_args, **_options)

    return run


def _check(options: Mapping[str, Any]) -> None:
    for name in HANDED_DOWN:
        if options.get(name):
            raise ValueError(f"{name} is not supported on Windows platforms")


def _rename(source: Any, target: Any) -> None:
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
    os.rename(source, target)


def _socketpair(*_arguments: Any) -> Any:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = socket.create_connection(listener.getsockname())
        return first, listener.accept()[0]


def _refuse_folders(event: str, arguments: tuple[Any, ...]) -> None:
    """There are no files of Linux's for us, whichever function opens them."""
    if event not in ("open", "os.listdir", "os.scandir", "ctypes.dlopen") or not isinstance(arguments[0], str | os.PathLike):
        return
    path = os.fspath(arguments[0])
    if isinstance(path, str) and path.startswith(FOLDERS) and _asked_by_us(sys._getframe(1)):
        raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}, as on Windows", path)


def _asked_by_us(frame: FrameType | None) -> bool:
    """True if the innermost function outside of the standard library is ours."""
    while frame is not None and frame.f_code.co_filename.startswith((LIBRARY, "<frozen", __file__)):
        if "site-packages" in frame.f_code.co_filename:
            return False
        frame = frame.f_back
    return frame is not None and is_ours(frame.f_code.co_filename)
