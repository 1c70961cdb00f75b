"""The end of a command: its exit code, and an error's line on standard error.

Exit codes: 0 fine, 1 the engine or the machine failed, 2 bad input, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress

from cupola.compiler.cli.shortage import shortage
from cupola.runtime.environment import debug_level, num_threads
from cupola.runtime.errors import CupolaError, InputError, one_line

Described = tuple[str, int]  # the line, and the exit code


def outcome(command: Callable[[], object], describe: Callable[[Exception], Described | None]) -> int:
    """Runs a command and returns its exit code; an error becomes one line on standard error.

    Args:
        describe: knows errors of whatever reads the command line, which are the user's.
    """
    debugging = True
    try:
        debugging = debug_level() > 0
        num_threads()  # read later; a mistyped value is refused at once
        if not debugging:
            warnings.simplefilter("ignore")
        code = command()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last stop before the user, who gets a line and not a traceback
        known = describe(error)
        if debugging and known is None and not isinstance(error, InputError):
            traceback.print_exception(error)
        message, code = known or _describe(error)
        print("error:", one_line(" ".join(message.split())), file=sys.stderr)
        if isinstance(error, OSError):
            _drop_output()
        return code


def _describe(error: Exception) -> Described:
    lack = shortage(error)
    match error:
        case CupolaError():
            return str(error), 2 if isinstance(error, InputError) else 1
        case _ if lack is not None:
            return lack, 1
        case OSError():
            return str(error), 1
        case _:
            return f"{type(error).__name__}: {error} (a bug in cupola; CUPOLA_DEBUG=1 shows where)", 1


def _drop_output() -> None:
    """Lets go of what standard output can't take, or Python would complain of it again at its end."""
    with suppress(OSError, ValueError):
        if sys.stdout is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
