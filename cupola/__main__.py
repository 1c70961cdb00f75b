"""`python -m cupola` and the `cupola` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from cupola.compiler.cli.shortage import shortage


def main() -> None:
    """Runs the command line and exits with its code. On SIGTERM it cleans up first."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        from cupola.compiler.cli.app import run  # here, since memory may end while it is imported
    except (ImportError, MemoryError, OSError) as error:
        problem = shortage(error)
        if problem is None:
            raise
        sys.exit(f"error: {problem}")
    sys.exit(run(sys.argv[1:]))


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
