"""The part of cupola that a package carries: what `run`, `chat`, `serve` and `LLM` take, under the package's own name.

Packages of two models, and cupola itself, may be installed side by side and used in one process: each has its own runtime, whose imports
are rewritten from `cupola.…` to `NAME.cupola.…`, as pip does with the packages that it carries.
"""

from __future__ import annotations

import ast
import json
import subprocess
from importlib import metadata, resources
from pathlib import Path

from cupola.compiler.package.archive import Member
from cupola.runtime.environment import interpreter
from cupola.runtime.errors import CupolaError

NOT_CARRIED = ("embed", "load_generator", "measure")  # folders of the runtime: for C, for measuring servers, for measuring models
ROOT = "cupola"
VERSION = metadata.version(ROOT)
# The modules outside of the runtime are those that the command line loads where typer is not installed.
_LOADED = """
import json, sys
sys.modules["typer"] = None
import cupola.__main__, cupola.compiler.cli.plain
found = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "cupola" and module.__file__}
print(json.dumps(found))
"""


def runtime_members(name: str) -> list[Member]:
    """The runtime's files, for the package `name`."""
    found = {**_loaded_modules(), **_runtime_modules()}
    members = [Member(f"{name}/{path}", rewritten(file, name)) for path, file in sorted(found.items())]
    page = resources.files("cupola.runtime.server") / "page"
    members += [Member(f"{name}/{ROOT}/runtime/server/page/{file.name}", file.read_bytes()) for file in sorted_files(page)]
    return members


def sorted_files(folder: resources.abc.Traversable) -> list[resources.abc.Traversable]:
    """The files of a folder of the package, by name."""
    return sorted((file for file in folder.iterdir() if file.is_file()), key=lambda file: file.name)


def rewritten(file: Path, name: str) -> bytes:
    """A module's source, whose imports of cupola are imports from the package `name`."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str(module)) if _is_ours(module):
                lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"from {module} import", f"from {name}.{module} import", 1)
            case ast.Import(names=names) if any(_is_ours(alias.name) for alias in names):
                if [alias.name for alias in names] != [ROOT]:
                    raise CupolaError(f"{file}:{node.lineno}: only `import cupola` and `from cupola.… import …` can be packaged")
                lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"import {ROOT}", f"from {name} import {ROOT}", 1)
    return "".join(lines).encode()


def requirements(extra: str = "") -> list[str]:
    """Requirements of cupola's for pip, or those beside them of one of its extras, without marks of extras."""
    found = []
    for line in metadata.requires(ROOT) or ():
        requirement, _, marker = line.partition(";")
        conditions = [part.strip() for part in marker.split(" and ") if part.strip()]
        extras = [part for part in conditions if part.startswith("extra ==")]
        if extras == ([f'extra == "{extra}"'] if extra else []):
            others = [part for part in conditions if part not in extras]
            found.append("; ".join((requirement.strip(), *([" and ".join(others)] if others else []))))
    return found


def license_text() -> str:
    """cupola's own licence."""
    beside = Path(__file__).resolve().parents[2] / "LICENSE"  # a checkout's
    files = [file for file in metadata.files(ROOT) or () if file.name == "LICENSE"]
    return beside.read_text("utf-8") if beside.is_file() else files[0].read_text("utf-8")


def _loaded_modules() -> dict[str, Path]:
    done = subprocess.run([*interpreter(), "-c", _LOADED], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CupolaError(f"the runtime can't be loaded: {done.stderr.strip().splitlines()[-1]}")
    return {_path_of(name, Path(file)): Path(file) for name, file in json.loads(done.stdout).items()}


def _runtime_modules() -> dict[str, Path]:
    room = Path(__file__).parents[2] / "runtime"
    files = (file for file in room.rglob("*.py") if file.relative_to(room).parts[0] not in NOT_CARRIED)
    return {f"{ROOT}/runtime/{file.relative_to(room).as_posix()}": file for file in files}


def _path_of(name: str, file: Path) -> str:
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if file.name == "__init__.py" else f"{path}.py"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == ROOT
