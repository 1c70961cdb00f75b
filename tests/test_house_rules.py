"""DESIGN.md's house rules beyond those of `test_layers.py`: tests for everything, screens, frozen data, errors, docstrings, verified IR.

Rules 1, 4 and 8 are checked by `test_layers.py`; annotations and the presence of docstrings (rule 6) by ruff; rule 10's form by
`test_design.py`. Each checker has a case at the end of this file in which it finds a fault.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch

import pytest

from cupola.models import FAMILIES
from cupola.runtime import errors
from tests.test_layers import ROOT, SCRIPTS, SOURCES, parse, python_files
from tests.without_posix.without_posix import FOLDERS, HANDED_DOWN, MODULES, NAMES, lacks

TESTS = python_files("tests")
MAX_SCREEN = 40  # lines, without the docstring
SCREENS = {
    "compiler/compile.py": "compile",
    "compiler/pipeline.py": "pipeline",
    "runtime/engine/scheduler.py": "Scheduler.schedule",
    "runtime/engine/engine.py": "Engine.step",
}
NOT_A_PASS = {"rewrite": "what passes are written with"}

# Folders whose tests have another name -> one of their tests.
TESTED_BY = {
    "runtime/server/translations": "tests/runtime/server/test_messages.py",
    "targets/cpu/emit": "tests/targets/cpu/test_loops.py",
    "targets/cpu/linear": "tests/targets/test_kernels.py",
    "targets/cpu/measure": "tests/targets/cpu/test_ledger.py",
    "targets/cpu/recurrent": "tests/targets/test_recurrent.py",
    "targets/cpu/rows": "tests/targets/cpu/test_elementwise.py",
    "targets/ops": "tests/targets/test_kernels.py",
    "targets/testing": "tests/targets/test_kernels.py",
}

# Dataclasses that change -> why. Elsewhere frozen ones cross borders.
CHANGES = {
    ("benchmarks/peers/turns.py", "Record"): "figures of an engine, gathered round by round",
    ("compiler/sources/conversions.py", "Conversion"): "gathers a converter's tensors as the checkpoint's names are read",
    ("runtime/engine/grammar_masks.py", "_Matching"): "counts what a grammar's process knows and was asked",
    ("runtime/server/artifact_watch.py", "ArtifactWatch"): "remembers the files as they were last seen",
    ("runtime/server/generation.py", "Choice"): "a completion that grows as tokens come",
    ("runtime/server/record.py", "RequestRecord"): "one request's line in the log, filled in on the way",
    ("runtime/server/translations/responses.py", "ResponseAnswer"): "numbers the events that it has written",
    ("runtime/text/tokenizer_safety.py", "_Part"): "adds up a pattern's cost while it is parsed",
}

# (file or pattern, what it raises) -> why that is not from runtime/errors.py's tree though the file itself does not catch it.
OTHER_ERRORS = {
    ("compiler/cli/*", "Exit"): "typer's way to end a command with a code",
    ("compiler/frontend/attention.py", "AssertionError"): "the marker is traced and never run",
    ("compiler/frontend/experts.py", "AssertionError"): "the marker is traced and never run",
    ("compiler/frontend/recurrence.py", "AssertionError"): "markers are traced and never run",
    ("compiler/sources/checkpoints/blocks.py", "ValueError"): "the methods make a SourceError of it",
    ("targets/ops/recurrent.py", "NotImplementedError"): "each kind of recurrence says it",
    ("runtime/artifact/expressions.py", "ValueError"): "plan_check.py makes an ArtifactError of it",
    ("runtime/server/*", "HTTPException"): "Starlette's; errors.py answers it",
    ("runtime/server/app.py", "JSONDecodeError"): "FastAPI's; errors.py answers it",
    ("runtime/server/*", "RequestValidationError"): "FastAPI's; errors.py answers it",
    ("runtime/server/*", "ServerError"): "an HTTP status; errors.py answers it",
    ("runtime/structured/grammar_worker.py", "RuntimeError"): "in a process of its own, which answers with the text",
    ("runtime/structured/json_schema.py", "SchemaError"): "grammar.py makes a RequestError of it",
    ("runtime/structured/lark_grammar.py", "FileNotFoundError"): "Lark asks for files so",
    ("runtime/structured/lark_terminals.py", "TerminalError"): "lark_grammar.py makes a LarkGrammarError of it",
    ("runtime/structured/xgrammar_library.py", "ModuleNotFoundError"): "as importing the library would",
    ("runtime/system/limits.py", "WinError"): "an OSError, as Windows says it; the process ends",
    ("runtime/text/template_worker.py", "ValueError"): "in a process of its own, which answers with the text",
    ("runtime/text/tokenizer_worker.py", "RuntimeError"): "in a process of its own, which answers with the text",
    ("runtime/worker_process.py", "TooExpensiveError"): "who asked the worker makes a RequestError of it",
    ("targets/testing/case.py", "LookupError"): "for tests, whose operation no kernel takes",
}

# Files of the runtime beside `runtime/system/` that use what systems such as Windows lack -> what for. Each does without it there.
FOR_ONE_SYSTEM = {
    "runtime/cpu_features.py": "Linux's list of the processor's features",
    "runtime/device/kfd.py": "Linux's list of AMD's GPUs",
    "runtime/device/weights.py": "Linux's large pages",
    "runtime/load_generator/session.py": "uvloop, which takes less time than asyncio's own loop",
    "runtime/machine.py": "Linux's control groups, and the cores that a process may run on",
}

QUESTIONS = ("What", "Who", "Whose", "Whether")


def screen_faults(path: str, tree: ast.AST, name: str) -> list[str]:
    """A fault if the function `name` (or `Class.method`) is missing or longer than a screen, its docstring aside."""
    body: list[ast.stmt] = list(getattr(tree, "body", ()))
    *classes, function = name.split(".")
    for outer in classes:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == outer), [])
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == function), None)
    if found is None:
        return [f"{path}: has no {name}"]
    docstring = found.body[0] if ast.get_docstring(found) else None
    length = (found.end_lineno or 0) - found.lineno + 1
    length -= (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return [f"{path}: {name} has {length} lines"] if length > MAX_SCREEN else []


def missing_files(names: Iterable[str], pattern: str) -> list[str]:
    """The tests, by the pattern of their paths, that do not exist."""
    return [test for name in names if not (ROOT / (test := pattern.format(name))).exists()]


def scheme_files() -> list[str]:
    """The files of `passes/schemes/` that add schemes."""
    return [file.stem for file in (ROOT / "passes/schemes").glob("*.py") if "\nSCHEMES = " in file.read_text() and file.stem != "__init__"]


def missing_names(names: Iterable[str], test: str) -> list[str]:
    """The names that `test` has no string of."""
    _, tree = parse(ROOT / test)
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return [f"{test}: has no case of {name}" for name in names if name not in strings]


def importers() -> Iterator[str]:
    """The formats that sources may have: `open_gguf` returns a Source of one."""
    for file in python_files("compiler/sources"):
        for node in ast.walk(parse(file)[1]):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("open_") and node.name != "open_source":
                yield node.name.removeprefix("open_")


def untested_folders(folders: Iterable[str], tested_by: Mapping[str, str]) -> list[str]:
    """Folders without a folder of tests, or a test, of their name."""
    faults = []
    for folder in folders:
        place = ROOT / "tests" / folder
        mirrored = any(place.rglob("test_*.py")) or any(place.parent.glob(f"test_{place.name}*.py"))
        if mirrored == (folder in tested_by) or not (mirrored or (ROOT / tested_by[folder]).exists()):
            faults.append(f"{folder}: {'is in the table and needs not be' if mirrored else 'has no tests'}")
    return faults


def thawed_classes(path: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, fault) of each dataclass and msgspec struct that is not frozen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            makers = [ast.unparse(decorator) for decorator in node.decorator_list]
            is_dataclass = any("dataclass" in maker and "frozen=True" not in maker for maker in makers)
            is_struct = any(ast.unparse(base).endswith("Struct") for base in node.bases) and "frozen" not in {k.arg for k in node.keywords}
            if is_dataclass or is_struct:
                yield node.name, f"{path}:{node.lineno}: {node.name} is not frozen"


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node).split(".")[-1]


def _is_a(name: str, base: str) -> bool:
    """True if one built-in exception is another, or a kind of it."""
    kinds = getattr(builtins, name, None), getattr(builtins, base, None)
    return name == base or (all(isinstance(kind, type) for kind in kinds) and issubclass(*kinds))


def foreign_errors(path: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, fault) of each exception raised that is neither of `runtime/errors.py` nor caught by the same file.

    `except Exception` does not count. What a helper returns to be raised has no class to see here.
    """
    handlers = [node.type for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is not None]
    caught = {_last_name(kind) for handler in handlers for kind in (handler.elts if isinstance(handler, ast.Tuple) else [handler])}
    caught -= {"Exception", "BaseException"}
    hooks = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    asked = {node for hook in hooks for node in ast.walk(hook)}  # where Python itself wants an AttributeError
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        name = _last_name(node.exc)
        is_class = name.lstrip("_")[:1].isupper()
        is_ours = hasattr(errors, name) or any(_is_a(name, kind) for kind in caught)
        if is_class and not is_ours and not (name == "AttributeError" and node in asked):
            yield name, f"{path}:{node.lineno}: raises {name}, which is not of cupola.runtime.errors"


def unverified_passes(path: str, tree: ast.AST) -> list[str]:
    """Calls in a test that apply a pass without `tests/passes/harness.py`, which verifies the IR after it."""
    modules = ("cupola.passes", "cupola.compiler.pipeline")
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith(modules)]
    makers = {alias.asname or alias.name for node in imports for alias in node.names}

    def makes_passes(node: ast.AST) -> bool:
        return any(isinstance(part, ast.Call) and ast.unparse(part.func) in makers for part in ast.walk(node))

    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For) and makes_passes(node.iter)]
    steps = {ast.unparse(loop.target) for loop in loops}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        f"{path}:{call.lineno}: applies {ast.unparse(call.func)} without the harness"
        for call in calls
        if (isinstance(call.func, ast.Call) and ast.unparse(call.func.func) in makers) or ast.unparse(call.func) in steps
    ]


def questions(path: str, tree: ast.AST) -> list[str]:
    """Docstrings that begin with What, Who or Whether, instead of saying what a thing is or does."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [(node, ast.get_docstring(node)) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [f"{path}: {getattr(node, 'name', 'module')}: {text[:60]}" for node, text in texts if text and text.split()[0] in QUESTIONS]


def uses_of_posix(path: str, tree: ast.AST) -> Iterator[str]:
    """Modules, names, arguments and files that Windows lacks, and `rename`, which replaces no file there."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if found := [alias.name for alias in names if alias.name.partition(".")[0] in MODULES]:
                yield f"{path}:{node.lineno}: imports {found[0]}"
            case ast.ImportFrom(module=str(module), names=names):
                found = [alias.name for alias in names if lacks(module, alias.name)]
                if found or module.partition(".")[0] in MODULES:
                    yield f"{path}:{node.lineno}: imports {module}.{(found or ['…'])[0]}"
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in NAMES and lacks(module, name):
                yield f"{path}:{node.lineno}: uses {module}.{name}"
            case ast.Attribute(attr="rename" | "add_signal_handler" | "create_unix_connection" | "create_unix_server"):
                yield f"{path}:{node.lineno}: uses {node.attr}"
            case ast.keyword(arg=str(name)) if name in HANDED_DOWN:
                yield f"{path}:{node.value.lineno}: gives {name}"
            case ast.Constant(value=str(text)) if text.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
                yield f"{path}:{node.lineno}: names {text}"


def test_passes_schemes_families_targets_and_importers_have_tests() -> None:
    passes = [file.stem for file in (ROOT / "passes").glob("*.py") if file.stem not in {"__init__", *NOT_A_PASS}]
    targets = [file.parent.name for file in (ROOT / "targets").glob("*/target.py")]
    assert missing_files(passes, "tests/passes/test_{}.py") == []
    assert missing_files(importers(), "tests/compiler/sources/test_{}.py") == []
    assert missing_files(targets, "tests/targets/{}") == []
    assert missing_files(scheme_files(), "tests/passes/schemes/test_{}.py") == []
    assert missing_names((family.model_type for family in FAMILIES), "tests/passes/test_pipeline.py") == []
    assert {"gguf", "huggingface"} <= set(importers()) and {"floats", "g32"} <= set(scheme_files()) and "cpu" in targets


def test_every_folder_has_tests() -> None:
    rooms = ("compiler/", "passes/", "targets/", "runtime/")
    folders = {f"{file.parent.relative_to(ROOT).as_posix()}/" for file in SOURCES}
    assert untested_folders(sorted(folder[:-1] for folder in folders if folder.startswith(rooms)), TESTED_BY) == []


@pytest.mark.parametrize("path", SCREENS)
def test_what_one_reads_first_fits_a_screen(path: str) -> None:
    assert screen_faults(*parse(ROOT / path), SCREENS[path]) == []


def test_dataclasses_are_frozen() -> None:
    parsed = [parse(file) for file in SOURCES + SCRIPTS]
    found = {(path, name): fault for path, tree in parsed for name, fault in thawed_classes(path, tree)}
    assert [found[key] for key in found if key not in CHANGES] == []
    assert set(CHANGES) <= set(found), "rows of the table that nothing needs"


def test_errors_come_from_one_tree() -> None:
    used, faults = set(), []
    for file in SOURCES:
        path, tree = parse(file)
        for name, fault in foreign_errors(path, tree):
            rows = {row for row in OTHER_ERRORS if fnmatch(path, row[0]) and row[1] == name}
            used |= rows
            faults += [] if rows else [fault]
    assert faults == []
    assert used == set(OTHER_ERRORS), "rows of the table that nothing needs"


def test_the_ir_is_verified_after_every_pass() -> None:
    harness = ROOT / "tests/passes/harness.py"
    assert [fault for file in TESTS if file != harness for fault in unverified_passes(*parse(file))] == []


def test_docstrings_say_what_a_thing_is() -> None:
    files = (*SOURCES, *SCRIPTS, *TESTS, *python_files("requirements"))
    assert [fault for file in files for fault in questions(*parse(file))] == []


def test_the_runtime_uses_posix_in_one_file_a_concern() -> None:
    """Each has something for other systems, with which its tests pass where `tests/without_posix` is on PYTHONPATH."""
    parsed = [parse(file) for file in SOURCES if file.is_relative_to(ROOT / "runtime") and not file.is_relative_to(ROOT / "runtime/system")]
    found = {path: faults for path, tree in parsed if (faults := list(uses_of_posix(path, tree)))}
    assert [fault for path, faults in found.items() if path not in FOR_ONE_SYSTEM for fault in faults] == []
    assert set(FOR_ONE_SYSTEM) <= {*found, "runtime/machine.py"}, "rows of the table that nothing needs"


def test_the_rule_of_screens_itself() -> None:
    def code(num_lines: int) -> ast.Module:
        return ast.parse("class A:\n def f(self):\n  '''A\n  docstring.'''\n" + "  x = 1\n" * (num_lines - 1))

    assert screen_faults("file.py", code(40), "A.f") == []
    assert screen_faults("file.py", code(41), "A.f") == ["file.py: A.f has 41 lines"]
    assert screen_faults("file.py", code(9), "A.g") == ["file.py: has no A.g"]


def test_the_rules_of_tests_themselves() -> None:
    assert missing_files(["simplify", "complicate"], "tests/passes/test_{}.py") == ["tests/passes/test_complicate.py"]
    assert missing_names(["w4a8", "w2a2"], "tests/passes/schemes/test_g32.py") == ["tests/passes/schemes/test_g32.py: has no case of w2a2"]
    assert untested_folders(["runtime/text", "targets/tpu"], {}) == ["targets/tpu: has no tests"]
    assert untested_folders(["targets/tpu"], {"targets/tpu": "tests/targets/test_kernels.py"}) == []
    assert untested_folders(["targets/tpu"], {"targets/tpu": "tests/targets/test_tpu.py"}) == ["targets/tpu: has no tests"]
    assert len(untested_folders(["runtime/text"], {"runtime/text": "tests/runtime/text"})) == 1


@pytest.mark.parametrize(
    ("code", "num_faults"),
    [("@dataclass\nclass A: pass", 1), ("@dataclasses.dataclass(slots=True)\nclass A: pass", 1), ("class A(msgspec.Struct): pass", 1),
     ("@dataclass(frozen=True)\nclass A: pass", 0), ("class A(msgspec.Struct, frozen=True): pass", 0), ("class A: pass", 0)],
)  # fmt: skip
def test_the_rule_of_frozen_classes_itself(code: str, num_faults: int) -> None:
    assert len(list(thawed_classes("file.py", ast.parse(code)))) == num_faults


@pytest.mark.parametrize(
    ("code", "num_faults"),
    [("raise ValueError('no')", 1), ("raise KeyError", 1), ("raise library.Error()", 1), ("raise OptionError('no')", 0),
     ("try:\n f()\nexcept (OSError, ValueError) as e:\n raise OptionError('no') from e\ndef f(): raise ValueError", 0),
     ("try:\n f()\nexcept OSError:\n g()\ndef f(): raise FileNotFoundError", 0),
     ("try:\n f()\nexcept Exception:\n g()\ndef f(): raise ValueError", 1),
     ("def __getattr__(name): raise AttributeError(name)", 0), ("def f(name): raise AttributeError(name)", 1),
     ("raise _explain(error)", 0), ("try:\n f()\nexcept OSError:\n raise", 0)],
)  # fmt: skip
def test_the_rule_of_errors_itself(code: str, num_faults: int) -> None:
    assert len(list(foreign_errors("file.py", ast.parse(code)))) == num_faults


@pytest.mark.parametrize(
    ("code", "num_faults"),
    [("simplify()(mod)", 1), ("for step in (simplify(),): mod = step(mod)", 1), ("apply(simplify(), before)", 0),
     ("for step in (simplify(),): mod = verified(step, mod)", 0), ("relax.transform.FuseOps()(mod)", 0)],
)  # fmt: skip
def test_the_rule_of_verified_passes_itself(code: str, num_faults: int) -> None:
    assert len(unverified_passes("file.py", ast.parse(f"from cupola.passes.simplify import simplify\n{code}"))) == num_faults


@pytest.mark.parametrize(
    ("code", "num_faults"),
    [('"""What it is."""', 1), ('def f():\n """Whether it is."""', 1), ('class A:\n """Who it is."""', 1),
     ('def f():\n """True if it is what it was."""', 0), ('"""Whatever."""', 0), ("def f(): pass", 0)],
)  # fmt: skip
def test_the_rule_of_docstrings_itself(code: str, num_faults: int) -> None:
    assert len(questions("file.py", ast.parse(code))) == num_faults


@pytest.mark.parametrize(
    ("code", "num_faults"),
    [("import resource", 1), ("from fcntl import flock", 1), ("from os import fork, getpid", 1), ("os.sched_getaffinity(0)", 1),
     ("signal.signal(signal.SIGHUP, f)", 1), ("Popen(command, pass_fds=(3,))", 1), ("open('/proc/self/stat')", 1), ("a.rename(b)", 1),
     ("import os, signal, socket", 0), ("os.replace(a, b)", 0), ("signal.signal(signal.SIGTERM, f)", 0), ("states.fork(a)", 0),
     ("print('procedures in /proceedings')", 0)],
)  # fmt: skip
def test_the_rule_of_posix_itself(code: str, num_faults: int) -> None:
    assert len(list(uses_of_posix("file.py", ast.parse(code)))) == num_faults
