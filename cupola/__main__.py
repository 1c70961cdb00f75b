"""`python -m cupola` and the `cupola` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from cupola.compiler.cli.app import run


def main() -> None:
    """Runs the command line and exits with its code. On SIGTERM it cleans up first."""
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(run(sys.argv[1:]))


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
