"""The `cupola` command: its subcommands, and what becomes of an error.

Exit codes: 0 fine, 1 the engine or the machine failed, 2 bad input, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

import cupola
from cupola.compiler.cli.bench import bench
from cupola.compiler.cli.bench_serve import bench_serve
from cupola.compiler.cli.chat import chat
from cupola.compiler.cli.check_kernels import check_kernels
from cupola.compiler.cli.compile import compile_model
from cupola.compiler.cli.eval import eval_model
from cupola.compiler.cli.inspect import inspect
from cupola.compiler.cli.lists import models, targets
from cupola.compiler.cli.parameters import flowing
from cupola.compiler.cli.run import run_model
from cupola.compiler.cli.serve import serve_model
from cupola.compiler.cli.shortage import shortage
from cupola.runtime.environment import debug_level, num_threads
from cupola.runtime.errors import CupolaError, InputError, one_line

app = typer.Typer(
    name="cupola", add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.command("compile")(compile_model)
app.command("run")(run_model)
app.command("chat")(chat)
app.command("serve", help=flowing(serve_model))(serve_model)
app.command("bench", help=flowing(bench))(bench)
app.command("bench-serve", help=flowing(bench_serve), context_settings={"allow_extra_args": True})(bench_serve)
app.command("eval", help=flowing(eval_model))(eval_model)
app.command("inspect")(inspect)
app.command("check-kernels")(check_kernels)
app.command("models")(models)
app.command("targets")(targets)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.", is_eager=True)] = False,
) -> None:
    """Compile large language models for your hardware, and run them."""
    if version:
        typer.echo(f"cupola {cupola.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; an error becomes one line on standard error."""
    debugging = True
    try:
        debugging = debug_level() > 0
        num_threads()  # read later; a mistyped value is refused at once
        if not debugging:
            warnings.simplefilter("ignore")
        return int(app(args=list(arguments), prog_name="cupola", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last stop before the user, who gets a line and not a traceback
        if debugging and not isinstance(error, typer.TyperException | InputError):
            traceback.print_exception(error)
        code = _report(error)
        if isinstance(error, OSError):
            _drop_output()
        return code


def _drop_output() -> None:
    """Lets go of what standard output can't take, or Python would complain of it again at its end."""
    with suppress(OSError, ValueError):
        if sys.stdout is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def _report(error: Exception) -> int:
    lack = shortage(error)
    match error:
        case typer.TyperException():
            message, code = error.format_message(), 2
        case CupolaError():
            message, code = str(error), 2 if isinstance(error, InputError) else 1
        case typer.Abort():
            message, code = "no input", 1
        case _ if lack is not None:
            message, code = lack, 1
        case OSError():
            message, code = str(error), 1
        case _:
            message, code = f"{type(error).__name__}: {error} (a bug in cupola; CUPOLA_DEBUG=1 shows where)", 1
    print("error:", one_line(" ".join(message.split())), file=sys.stderr)
    return code
