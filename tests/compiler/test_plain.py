"""The command line without typer: what its parser makes of a command's function, and what becomes of errors."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from cupola.compiler.cli.outcome import outcome
from cupola.runtime.errors import EngineError, OptionError

PARSE = """
import sys
sys.modules["typer"] = None
from cupola.compiler.cli import plain
from typing import Annotated
from pathlib import Path
from cupola.compiler.cli.declare import Argument, Option
def command(
    model: Annotated[str, Argument(help="100 % needed")],
    number: Annotated[int | None, Option("--number", "-n", help="")] = None,
    share: Annotated[float, Option(help="")] = 0.5,
    file_name: Annotated[Path | None, Option(help="")] = None,
    words: Annotated[list[str] | None, Option("--word", help="")] = None,
    caching: Annotated[bool, Option("--caching/--no-caching", help="")] = True,
    as_json: Annotated[bool, Option("--json", help="")] = False,
) -> None:
    "Does a thing."
    print(model, number, share, repr(file_name), words, caching, as_json)
command.__annotations__ = {k: v for k, v in command.__annotations__.items() if k != "return"}
plain.COMMANDS = {"do": command}
sys.exit(plain.run(sys.argv[1:]))
"""


def parse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PARSE, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["do", "m"], "m None 0.5 None None True False"),
        (["do", "-n", "3", "m", "--share", "1"], "m 3 1.0 None None True False"),
        (["do", "m", "--word", "a", "--word", "b", "--json"], "m None 0.5 None ['a', 'b'] True True"),
        (["do", "m", "--no-caching", "--file-name", "x"], "m None 0.5 PosixPath('x') None False False"),
        (["do", "m", "--caching"], "m None 0.5 None None True False"),
    ],
)
def test_parameters_are_what_the_annotations_say(arguments: list[str], printed: str) -> None:
    done = parse(*arguments)
    assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["do", "m", "--number", "x"], "invalid int value: 'x'"), (["do"], "required: model"), (["do", "m", "--num", "3"], "--num")],
)
def test_mistakes_are_one_line_and_code_2(arguments: list[str], said: str) -> None:
    done = parse(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_help_shows_percent_signs() -> None:
    assert "100 % needed" in parse("do", "--help").stdout


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OptionError("is 0", field="n", fix="give 1"), 2, "error: n: is 0 (give 1)"),
        (EngineError("it is over"), 1, "error: it is over"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("no"), 1, "error: ZeroDivisionError: no (a bug in cupola; CUPOLA_DEBUG=1 shows where)"),
        (argparse.ArgumentTypeError("odd"), 7, "error: odd"),
    ],
)
def test_an_error_is_a_line_and_a_code(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert outcome(fail, lambda error: ("odd", 7) if isinstance(error, argparse.ArgumentTypeError) else None) == code
    assert capsys.readouterr().err.strip() == line


def test_an_answer_is_a_code() -> None:
    assert [outcome(lambda value=value: value, lambda _: None) for value in (None, 0, 3)] == [0, 0, 3]
