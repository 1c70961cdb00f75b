"""The command line where typer is not installed: an artifact runs, chats and serves with what its runtime needs, and nothing else.

The commands are those of `app.py`, read off the same functions.
"""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import cupola
from cupola.compiler.cli.chat import chat
from cupola.compiler.cli.outcome import outcome
from cupola.compiler.cli.parameters import COMPILING
from cupola.compiler.cli.run import run_model
from cupola.compiler.cli.serve import serve_model
from cupola.runtime.errors import OptionError

COMMANDS: dict[str, Callable[..., None]] = {"run": run_model, "chat": chat, "serve": serve_model}
MORE = "More commands come with `pip install 'cupola[cli]'`, and sources are compiled with `pip install 'cupola[compiler]'`."


@dataclass(frozen=True)
class Program:
    """The owner of the command line: cupola, for any artifact, or a package of one (`compiler/package/`).

    Attributes:
        name: as users call it.
        version, about: for its help.
        more: of its help, the end.
        model: the one artifact; None: each command is given one.
    """

    name: str
    version: str
    about: str
    more: str = ""
    model: Path | None = None


CUPOLA = Program("cupola", cupola.__version__, "Run large language models that were compiled for your hardware.", MORE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        more = f"; {self.epilog[0].lower()}{self.epilog[1:-1]}" if self.epilog else ""
        raise OptionError(message, fix=f"`{self.prog} --help` shows what there is{more}")


def run(arguments: Sequence[str], program: Program = CUPOLA) -> int:
    """Runs one command and returns its exit code; an error becomes one line on standard error."""
    return outcome(lambda: _run(arguments, program), lambda _: None)


def _run(arguments: Sequence[str], program: Program) -> None:
    parser = _Parser(program.name, description=program.about, epilog=program.more, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{program.name} {program.version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, function in COMMANDS.items():
        about = (inspect.getdoc(function) or "") if program.model is None else _about_one(function)
        command = commands.add_parser(name, help=about.partition("\n")[0], description=about, epilog=program.more, allow_abbrev=False)
        _declare(command, function, has_model=program.model is not None)
    given = vars(parser.parse_args(list(arguments)))
    if program.model is not None:
        given["model"] = str(program.model)
        if "served_model_name" in given and given["served_model_name"] is None:
            given["served_model_name"] = [program.name]
    COMMANDS[given.pop("command")](**given)


def _about_one(function: Callable[..., None]) -> str:
    """A command's docstring, without what it says of sources."""
    return (inspect.getdoc(function) or "").replace(" A source is compiled first, once.", "")


def _declare(parser: argparse.ArgumentParser, function: Callable[..., None], *, has_model: bool = False) -> None:
    """Gives a parser the parameters of a command's function, whose annotations say what they are; none that say which model, or how it is
    compiled, where there is one."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation, declared = typing.get_args(hints[name])
        if has_model and (name == "model" or declared.rich_help_panel == COMPILING):
            continue
        kind, about, flags = _plain_type(annotation), declared.help.replace("%", "%%"), tuple(declared.param_decls or (_flag(name),))
        if parameter.default is parameter.empty:
            parser.add_argument(name, type=kind, help=about)
        elif kind is bool:
            for flag, value in zip(flags[0].split("/"), (True, False), strict=False):
                parser.add_argument(flag, dest=name, action="store_const", const=value, default=parameter.default, help=about)
        else:
            many = typing.get_origin(kind) is list
            parser.add_argument(
                *flags,
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
