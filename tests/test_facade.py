"""The public API is flat, complete and lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cupola

FACADE = Path(cupola.__file__)
HEAVY = ("tvm", "tvm_ffi", "torch", "transformers", "numpy", "tokenizers", "typer", "rich")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", cupola.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(cupola, name)
    assert isinstance(value, str) or value.__doc__


def test_every_error_is_public() -> None:
    from cupola.runtime import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= set(cupola.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(FACADE.read_text(encoding="utf-8"))
    declared = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert declared - {"annotations", "TYPE_CHECKING"} == set(cupola.__all__) - {"__version__"}
    assert sorted(declared & set(dir(cupola))) == sorted(set(cupola.__all__) - {"__version__"})


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        cupola.LMM  # noqa: B018


def test_importing_cupola_imports_nothing_heavy() -> None:
    assert python(f"import sys, cupola; print([m for m in {HEAVY!r} if m in sys.modules])") == "[]"


def test_the_errors_come_without_anything_heavy() -> None:
    assert python(f"import sys, cupola; cupola.InputError; print([m for m in {HEAVY!r} if m in sys.modules])") == "[]"


WITHOUT_MEASURING = """
import importlib, pkgutil, sys
optional = ("cupola.runtime.load_generator", "cupola.runtime.measure")
sys.modules.update(dict.fromkeys((*optional, "torch", "transformers")))
import cupola, cupola.runtime
for module in pkgutil.walk_packages(cupola.runtime.__path__, "cupola.runtime."):
    if not module.name.startswith(optional):
        importlib.import_module(module.name)
from cupola.compiler.cli import plain
for name in ("Benchmark", "run_load_test"):
    try:
        getattr(cupola, name)
    except AttributeError as error:
        print(error)
"""


def test_the_runtime_does_without_what_measures_it() -> None:
    """And without torch and transformers: packages carry neither (`compiler/package/runtime_files.py`)."""
    first, second = python(WITHOUT_MEASURING).splitlines()
    assert first == "Benchmark is of cupola.runtime.measure, which this copy of cupola was made without; cupola itself has it"
    assert second.startswith("run_load_test is of cupola.runtime.load_generator, which")


def test_the_runtime_never_imports_torch() -> None:
    assert python("import sys, cupola; cupola.LLM; print([m for m in ('torch', 'transformers') if m in sys.modules])") == "[]"
