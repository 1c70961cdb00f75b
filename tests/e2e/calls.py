"""Many calls of the command line, each in a process of its own, forked from one that has everything imported.

A call gets an empty working folder, its own standard input and environment, and what `cupola.__main__.main` leaves behind is
reported: exit code, output, the folder's names.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIMEOUT_SECONDS = 600  # only what hangs takes as long
# What takes long, once for all calls.
IMPORTED = (
    "cupola.compiler.cli.app", "cupola.compiler.driver", "cupola.runtime.llm", "cupola.targets.cpu.kernels", "gguf",
    "transformers.models.llama.modeling_llama",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call; `kill` is a signal, sent when standard error says `when`."""

    arguments: list[str]
    stdin: str = ""  # a file
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = ""  # an existing working folder
    kill: int = 0
    when: str = ""


@dataclass(frozen=True)
class Result:
    """The result of a call. A negative code is a signal."""

    code: int
    out: str
    err: str
    names: list[str]

    @property
    def error(self) -> str:
        """The one line that a user sees of bad input: the last one, and the only one that is no progress."""
        assert self.code == 2, (self.code, self.err)
        *others, last = self.err.splitlines() or [""]
        assert last.startswith("error: ") and last.isprintable() and len(last) < 600, self.err
        assert all(line.startswith(("cupola: ", "Compiling ", "Ctrl-D leaves")) for line in others), self.err
        return last


def run_calls(calls: dict[str, Call], folder: Path) -> dict[str, Result]:
    """Runs all calls; `folder` is for their working folders and output."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "calls.json").write_text(json.dumps({name: asdict(call) for name, call in calls.items()}))
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as with a UTF-8 locale
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True)
    return {name: Result(**values) for name, values in json.loads((folder / "results.json").read_text()).items()}


def main(folder: Path) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else every process looks through what it shares with the others, and so gets a copy of it

    calls = {name: Call(**values) for name, values in json.loads((folder / "calls.json").read_text()).items()}
    started = [(name, call, *start(call, folder / str(i))) for i, (name, call) in enumerate(calls.items())]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda item: finish(*item[1:]), started))
    (folder / "results.json").write_text(json.dumps({item[0]: asdict(result) for item, result in zip(started, results, strict=True)}))


def start(call: Call, folder: Path) -> tuple[Path, int, int]:
    """Forks the call's process, which waits for a byte. All are forked before there is a thread."""
    (folder / "work").mkdir(parents=True)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(serve(call, folder))
    os.close(reader)
    return folder, pid, writer


def serve(call: Call, folder: Path) -> int:
    """The forked process: the command line as a shell would start it."""
    from cupola.__main__ import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell's foreground; jobs in its background ignore it
    for number, file, flags in [
        (0, call.stdin or os.devnull, os.O_RDONLY),
        (1, folder / "out", os.O_WRONLY),
        (2, folder / "err", os.O_WRONLY),
    ]:
        os.dup2(os.open(file, flags | os.O_CREAT if number else flags), number)
    os.chdir(call.folder or folder / "work")
    os.environ.update(call.environment)
    sys.argv = ["cupola", *(os.fsdecode(argument.encode("utf-8", "surrogateescape")) for argument in call.arguments)]
    code: object = 1
    try:
        main()
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001 - as the interpreter itself would
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 0


def finish(call: Call, folder: Path, pid: int, writer: int) -> Result:
    os.write(writer, b".")
    os.close(writer)
    end = time.monotonic() + TIMEOUT_SECONDS
    killed = False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        err = folder / "err"
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        elif call.kill and not killed and err.exists() and call.when in err.read_text(errors="replace"):
            killed = True
            os.kill(pid, call.kill)
        time.sleep(0.01)
    out, err_text = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
    return Result(os.waitstatus_to_exitcode(status), out, err_text, sorted(os.listdir(call.folder or folder / "work")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
