"""The command line where typer is not installed: an artifact runs, chats and serves with what its runtime needs, and nothing else.

The commands are those of `app.py`, read off the same functions.
"""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import NoReturn

import cupola
from cupola.compiler.cli.chat import chat
from cupola.compiler.cli.outcome import outcome
from cupola.compiler.cli.run import run_model
from cupola.compiler.cli.serve import serve_model
from cupola.runtime.errors import OptionError

COMMANDS: dict[str, Callable[..., None]] = {"run": run_model, "chat": chat, "serve": serve_model}
MORE = "More commands come with `pip install 'cupola[cli]'`, and sources are compiled with `pip install 'cupola[compiler]'`."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message, fix=f"`{self.prog} --help` shows what there is; {MORE[0].lower()}{MORE[1:-1]}")


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; an error becomes one line on standard error."""
    return outcome(lambda: _run(arguments), lambda _: None)


def _run(arguments: Sequence[str]) -> None:
    about = "Run large language models that were compiled for your hardware."
    parser = _Parser("cupola", description=about, epilog=MORE, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cupola {cupola.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, function in COMMANDS.items():
        about = inspect.getdoc(function) or ""
        _declare(commands.add_parser(name, help=about.partition("\n")[0], description=about, allow_abbrev=False), function)
    given = vars(parser.parse_args(list(arguments)))
    COMMANDS[given.pop("command")](**given)


def _declare(parser: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    """Gives a parser the parameters of a command's function, whose annotations say what they are."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation, declared = typing.get_args(hints[name])
        kind, about = _plain_type(annotation), declared.help.replace("%", "%%")
        if parameter.default is parameter.empty:
            parser.add_argument(name, type=kind, help=about)
        elif kind is bool:
            for flag, value in zip((declared.flags or (_flag(name),))[0].split("/"), (True, False), strict=False):
                parser.add_argument(flag, dest=name, action="store_const", const=value, default=parameter.default, help=about)
        else:
            many = typing.get_origin(kind) is list
            parser.add_argument(
                *(declared.flags or (_flag(name),)),
                dest=name,
                action="append" if many else "store",
                type=typing.get_args(kind)[0] if many else kind,
                default=parameter.default,
                help=about,
            )


def _plain_type(annotation: typing.Any) -> typing.Any:
    """The type of a parameter that may be None, too."""
    kinds = typing.get_args(annotation)
    return next(kind for kind in kinds if kind is not type(None)) if type(None) in kinds else annotation


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
