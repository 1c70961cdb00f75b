"""The `cupola` command: its subcommands."""

from __future__ import annotations

from collections.abc import Sequence
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
from cupola.compiler.cli.outcome import Described, outcome
from cupola.compiler.cli.package import package
from cupola.compiler.cli.parameters import flowing
from cupola.compiler.cli.run import run_model
from cupola.compiler.cli.serve import serve_model

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
app.command("package")(package)
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
    return outcome(lambda: app(args=list(arguments), prog_name="cupola", standalone_mode=False), _describe)


def _describe(error: Exception) -> Described | None:
    match error:
        case typer.TyperException():
            return error.format_message(), 2
        case typer.Abort():
            return "no input", 1
        case _:
            return None
