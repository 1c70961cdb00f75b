"""The house rules that a machine can check: who may import whom, how long things are, what the source may not hold."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
ROOMS = ("cupola", "compiler", "passes", "targets", "models", "runtime")
CONTRACTS = (
    "cupola.runtime.artifact",
    "cupola.runtime.errors",
    "cupola.runtime.environment",
    "cupola.runtime.machine",
    "cupola.runtime.wgpu_native",
)
TRACED = ("cupola.passes", "cupola.targets", "cupola.models", *CONTRACTS)

# Folder -> what of cupola its files may import: a module stands for all that it holds. The longest folder wins.
MAY_IMPORT = {
    "cupola": ("cupola",),
    "compiler": ("cupola.compiler", *TRACED),
    "compiler/cli": ("cupola.compiler", "cupola!", *TRACED),
    "passes": ("cupola.passes", "cupola.targets", *CONTRACTS),
    "targets": ("cupola.targets", *CONTRACTS),
    "models": ("cupola.models", "cupola.runtime.errors"),
    "runtime": ("cupola.runtime",),
    "tutorials": ("cupola",),
    "benchmarks": ("cupola",),
}  # "cupola!" is the facade alone
FFI_FILES = ("runtime/structured/xgrammar_library.py",)  # XGrammar's library is bound by tvm_ffi, and lives in processes of its own
TARGETS = sorted(file.parent.name for file in ROOT.glob("targets/*/target.py"))
INSTRUCTION_SET = re.compile(r"(?<![a-z])(avx|sse\d|amx|vnni|neon|asimd|sve\d?(?![a-z])|dotprod)", re.IGNORECASE)
# File -> the instruction sets that it may name. Linux lends AMX's registers on request, which is a fact about Linux.
MAY_NAME = {"runtime/machine.py": ("amx",)}
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|work|Users)/")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
TIR_DECORATORS = ("prim_func", "ir_module")


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


SOURCES = python_files(*ROOMS)
SCRIPTS = python_files("tutorials", "benchmarks")


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_rules(path: str) -> tuple[str, ...]:
    folder = max((folder for folder in MAY_IMPORT if path.startswith(f"{folder}/")), key=len)
    return MAY_IMPORT[folder]


def is_allowed(name: str, rules: tuple[str, ...]) -> bool:
    parts = name.split(".")
    if "cupola!" in rules and (name == "cupola" or (len(parts) == 2 and parts[1] not in ROOMS)):
        return True
    return any(name == rule or name.startswith(f"{rule}.") for rule in rules)


def broken_imports(path: str, tree: ast.AST) -> list[str]:
    """Imports of `path` that its room's rules forbid."""
    faults = []
    for line, name in imported_modules(tree):
        top = name.split(".")[0]
        if name.startswith("."):
            faults.append(f"{path}:{line}: relative import of {name}")
        elif top in ROOMS and top != "cupola":
            faults.append(f"{path}:{line}: import cupola.{name}, not {name}")
        elif top == "cupola" and not is_allowed(name, room_rules(path)):
            faults.append(f"{path}:{line}: may not import {name}")
        elif top in ("tvm", "tvm_ffi") and path.startswith("runtime/") and path not in FFI_FILES:
            faults.append(f"{path}:{line}: only {' and '.join(FFI_FILES)} import {top}")
        elif top in ("torch", "transformers") and not path.startswith(("compiler/", "models/", "tutorials/", "benchmarks/")):
            faults.append(f"{path}:{line}: only the compiler and the models import {top}")
    return faults


def imported_targets(path: str, tree: ast.AST) -> list[str]:
    """The imports of a folder in `targets/` that has a `target.py`, by a file that is not in that folder."""
    return [
        f"{path}:{line}: imports {name}"
        for line, name in imported_modules(tree)
        for folder in TARGETS
        if f"{name}.".startswith(f"cupola.targets.{folder}.") and not path.startswith(f"targets/{folder}/")
    ]


def named_instruction_sets(path: str, text: str) -> list[str]:
    """Lines that name an instruction set, but for the names that the file may."""
    allowed = MAY_NAME.get(path, ())
    found = ((number, name.group()) for number, line in enumerate(text.splitlines(), 1) for name in INSTRUCTION_SET.finditer(line))
    return [f"{path}:{number}: names {name}" for number, name in found if name.lower() not in allowed]


def long_functions(path: str, tree: ast.AST) -> list[str]:
    """Functions of more than 50 lines, decorators and docstring aside; TIR kernels are exempt."""
    faults = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_kernel(node):
            continue
        body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
        length = (node.end_lineno or 0) - body[0].lineno + 1 + (body[0].lineno - node.lineno if body is node.body else 1)
        if length > 50:
            faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
    return faults


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A TIR function, or one whose only business is to hold some."""
    inner = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef)]
    return any(kernel in ast.unparse(decorator) for node in inner for decorator in node.decorator_list for kernel in TIR_DECORATORS)


def swallowed_exceptions(path: str, tree: ast.AST) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            empty = all(
                isinstance(s, ast.Pass | ast.Continue) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in node.body
            )
            if empty:
                faults.append(f"{path}:{node.lineno}: an exception is swallowed; use contextlib.suppress with its type, and say why")
            catches_all = node.type is None or ast.unparse(node.type) == "BaseException"
            if catches_all and not isinstance(node.body[-1], ast.Raise):
                faults.append(f"{path}:{node.lineno}: catches everything, the user's Ctrl-C too")
    return faults


def environment_reads(path: str, tree: ast.AST) -> list[str]:
    """Uses of os.environ and os.getenv; setting a variable for a library or a child is no reading."""
    written = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            written.add(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault":
            written.add(node.func.value)
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Name) and n not in written]
    return [f"{path}:{n.lineno}: reads the environment" for n in used if ast.unparse(n) in ("os.environ", "os.getenv", "environ", "getenv")]


def unsafe_interpreters(path: str, tree: ast.AST) -> list[str]:
    """Uses of sys.executable: a child is started by `environment.interpreter()`, without the current folder on its path."""
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [f"{path}:{node.lineno}: starts an interpreter" for node in used if ast.unparse(node) == "sys.executable"]


def loose_arguments(path: str, tree: ast.AST) -> list[str]:
    """Functions with **kwargs; a name that begins with "_" marks those whose signature another library dictates."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    named = [f for f in functions if f.args.kwarg and not f.args.kwarg.arg.startswith("_")]
    return [f"{path}:{f.lineno}: {f.name} takes **{f.args.kwarg.arg}" for f in named if f.args.kwarg]


@functools.cache
def parse(file: Path) -> tuple[str, ast.Module]:
    return file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def faults_of(rule: Callable[[str, ast.Module], list[str]], files: Sequence[Path] = SOURCES) -> list[str]:
    """All that a rule finds in the files."""
    assert len(files) > 100
    return [fault for file in files for fault in rule(*parse(file))]


def test_a_room_imports_only_what_its_row_allows() -> None:
    assert faults_of(broken_imports, SOURCES + SCRIPTS) == []


def test_targets_are_found_by_name() -> None:
    """Only a target's own folder imports it, and the list of targets finds it: elsewhere an ability is asked."""
    assert faults_of(imported_targets, SOURCES + SCRIPTS) == []


def test_no_instruction_set_is_named_outside_targets() -> None:
    others = [file for file in SOURCES if not file.is_relative_to(ROOT / "targets") and file != ROOT / "runtime" / "cpu_features.py"]
    assert faults_of(lambda path, _: named_instruction_sets(path, (ROOT / path).read_text(encoding="utf-8")), others) == []


def test_functions_stop_at_50_lines() -> None:
    assert faults_of(long_functions) == []


def test_no_exception_is_swallowed() -> None:
    assert faults_of(swallowed_exceptions) == []


def test_no_function_takes_loose_keyword_arguments() -> None:
    assert faults_of(loose_arguments) == []


def test_files_stop_at_400_lines() -> None:
    lengths = {
        file: len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES if not file.is_relative_to(ROOT / "targets/cpu")
    }
    assert [f"{file}: has {length} lines" for file, length in lengths.items() if length > 400] == []


def test_the_environment_is_read_in_one_file() -> None:
    others = [file for file in SOURCES if file != ROOT / "runtime/environment.py"]
    assert faults_of(unsafe_interpreters, others) == []
    assert faults_of(environment_reads, others) == []


def test_setuptools_finds_every_folder() -> None:
    """Rooms are linked into `cupola/`, where setuptools, editors and type checkers look for one package."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = find_packages(str(ROOT), **options["packages"]["find"])
    folders = {file.parent.relative_to(ROOT).as_posix() for file in SOURCES}
    assert sorted(found) == sorted("cupola" if folder == "cupola" else f"cupola.{folder.replace('/', '.')}" for folder in folders)
    assert all((ROOT / "cupola" / room).readlink() == Path("..", room) for room in ROOMS[1:])


def test_the_source_holds_no_machine_paths_and_no_unfinished_work() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    faults = []
    for name in filter(None, tracked):
        file = ROOT / name
        if file == Path(__file__) or file.suffix not in (".py", ".md", ".toml", ".yaml", "") or not file.is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or UNFINISHED.search(line):
                faults.append(f"{name}:{number}: {line.strip()}")
    assert faults == []


@pytest.mark.parametrize(
    ("path", "line", "is_fine"),
    [
        ("runtime/llm.py", "from cupola.runtime.engine.engine import Engine", True),
        ("runtime/llm.py", "from cupola.compiler.program import Program", False),
        ("runtime/llm.py", "from cupola import compiler", False),
        ("runtime/llm.py", "import tvm", False),
        ("runtime/device/executor.py", "def f():\n  from tvm.runtime import vm", False),
        ("runtime/structured/xgrammar_library.py", "import tvm_ffi", True),
        ("runtime/engine/sampler.py", "import torch", False),
        ("passes/fuse.py", "from cupola.targets.ops import Linear", True),
        ("passes/fuse.py", "import passes", False),
        ("passes/fuse.py", "from . import other", False),
        ("passes/fuse.py", "from cupola.compiler import program", False),
        ("targets/base.py", "from cupola.runtime import artifact", True),
        ("targets/base.py", "from cupola.runtime.llm import LLM", False),
        ("models/llama.py", "import cupola.targets", False),
        ("compiler/build.py", "import cupola", False),
        ("compiler/build.py", "from cupola.runtime.engine.engine import Engine", False),
        ("compiler/cli/run.py", "import cupola", True),
        ("compiler/cli/run.py", "from cupola import LLM", True),
        ("compiler/cli/run.py", "from cupola.runtime.llm import LLM", False),
        ("tutorials/02.py", "from cupola.passes import pipeline", True),
    ],
)
def test_the_import_rule_itself(path: str, line: str, is_fine: bool) -> None:
    assert (broken_imports(path, ast.parse(line)) == []) is is_fine


@pytest.mark.parametrize(
    ("code", "num_faults"),
    [("try:\n f()\nexcept ValueError:\n pass", 1), ("try:\n f()\nexcept ValueError:\n 'why'", 1),
     ("try:\n f()\nexcept BaseException:\n g()", 1),
     ("try:\n f()\nexcept OSError as e:\n print(e)", 0)],
)  # fmt: skip
def test_the_exception_rule_itself(code: str, num_faults: int) -> None:
    assert len(swallowed_exceptions("file.py", ast.parse(code))) == num_faults


def test_the_environment_rule_itself() -> None:
    for code, num_faults in [
        ("os.environ['A'] = 'b'", 0),
        ("os.environ.setdefault('A', 'b')", 0),
        ("os.environ['A']", 1),
        ("x = os.getenv('A')", 1),
    ]:
        assert len(environment_reads("file.py", ast.parse(code))) == num_faults, code
    assert len(unsafe_interpreters("file.py", ast.parse("run([sys.executable, '-m', 'pip'])"))) == 1


def test_the_rules_of_targets_themselves() -> None:
    imports = ast.parse("from cupola.targets.cpu.isa import ISAS\nfrom cupola.targets.generic.rules import RULES")
    assert imported_targets("targets/cpu/kernels.py", imports) == []
    assert imported_targets("compiler/build.py", imports) == ["compiler/build.py:1: imports cupola.targets.cpu.isa.ISAS"]
    text = "if 'avx512f' in flags:  # and AMX\n    ask_save(answer)"
    assert named_instruction_sets("runtime/llm.py", text) == ["runtime/llm.py:1: names avx", "runtime/llm.py:1: names AMX"]
    assert named_instruction_sets("runtime/machine.py", text) == ["runtime/machine.py:1: names avx"]


def test_the_length_rule_itself() -> None:
    def function(num_lines: int, head: str = "") -> ast.Module:
        return ast.parse(f"{head}def f():\n" + " x = 1\n" * (num_lines - 1))

    assert long_functions("file.py", function(50)) == []
    assert len(long_functions("file.py", function(51))) == 1
    assert long_functions("file.py", function(99, "@T.prim_func(s_tir=True)\n")) == []
