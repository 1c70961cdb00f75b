"""`tests/without_posix` takes from the runtime's files what Windows lacks, all of it, and from nobody else."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from tests.without_posix.without_posix import NAMES, lacks

FOLDER = Path(__file__).parents[2] / "without_posix"


def names_on(platform: str, module: str) -> set[str]:
    """The public names of a module of the standard library, as typeshed has them."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.If():
                    known = {"sys": type("sys", (), {"platform": platform, "version_info": sys.version_info})}
                    visit(node.body if eval(ast.unparse(node.test), known) else node.orelse)
                case ast.FunctionDef() | ast.ClassDef():
                    found.add(node.name)
                case ast.AnnAssign():
                    found.add(ast.unparse(node.target))
                case ast.Assign():
                    found.update(map(ast.unparse, node.targets))
                case ast.ImportFrom():
                    found.update(alias.asname or alias.name for alias in node.names)

    folder = resources.files("mypy") / "typeshed" / "stdlib"
    file = next(file for file in (folder / f"{module}.pyi", folder / module / "__init__.pyi") if file.is_file())
    visit(ast.parse(file.read_text("utf-8")).body)
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("module", NAMES)
def test_what_is_taken_is_what_windows_lacks(module: str) -> None:
    everywhere = names_on("win32", module)
    assert [name for name in everywhere if lacks(module, name)] == []
    assert [name for name in names_on("linux", module) - everywhere if not lacks(module, name)] == []


TAKEN = [
    "import resource",
    "import fcntl",
    "from os import fork",
    "import os; os.sched_getaffinity",
    "import os.path; os.memfd_create",
    "import signal; signal.setitimer",
    "from signal import SIGKILL",
    "import socket; socket.AF_UNIX",
    "import select; select.poll",
    "import selectors; selectors.PollSelector",
    "import mmap; mmap.MADV_HUGEPAGE",
    "import subprocess; subprocess.Popen(['true'], start_new_session=True).wait()",
    "import subprocess; subprocess.run(['true'], pass_fds=(1,))",
    "import os, tempfile; a, b = tempfile.mkstemp()[1], tempfile.mkstemp()[1]; os.rename(a, b)",
    "open('/proc/self/stat').close()",
    "from pathlib import Path; Path('/proc/self/statm').read_text()",
    "import os; os.listdir('/sys')",
]
CHECK = """
import sys
for code in sys.stdin.read().splitlines():
    exec(code, {"__name__": "other", "__file__": "other.py"})
    try:
        exec(compile(code, OURS, "exec"), {"__name__": "cupola.runtime.example", "__file__": OURS})
    except (ImportError, AttributeError, ValueError, OSError):
        continue
    print(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_it_is_taken_from_the_runtime_and_from_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    code = f"OURS = {str(FOLDER.parents[1] / 'runtime' / 'example.py')!r}{CHECK}"
    done = subprocess.run([sys.executable, "-c", code], input="\n".join(TAKEN), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
