"""`python -m cupola` and the `cupola` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import FrameType

from cupola.compiler.cli.shortage import shortage


def main() -> None:
    """Runs the command line and exits with its code. On SIGTERM it cleans up first."""
    start(_command_line)


def start(load: Callable[[], Callable[[Sequence[str]], int]]) -> None:
    """Runs the command line that `load` imports, and exits with its code. On SIGTERM it cleans up first."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        run = load()
    except (ImportError, MemoryError, OSError) as error:
        problem = shortage(error)
        if problem is None:
            raise
        sys.exit(f"error: {problem}")
    sys.exit(run(sys.argv[1:]))


def _command_line() -> Callable[[Sequence[str]], int]:
    """The reader of the command line: all of it needs typer, running an artifact does not."""
    if find_spec("typer") is None:
        from cupola.compiler.cli import plain

        return plain.run
    from cupola.compiler.cli import app  # here, since memory may end while it is imported

    return app.run


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
