"""The entry of the load generator, which needs libraries that the rest of the runtime does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cupola.runtime.errors import OptionError
from cupola.runtime.load_generator.load_test import LoadTest

if TYPE_CHECKING:
    from cupola.runtime.load_generator.report import LoadReport


def run_load_test(test: LoadTest, on_done: Callable[[], None] = lambda: None) -> LoadReport:
    """Sends the requests of `test` and says how the server did; `on_done` is called after each.

    Raises:
        OptionError: the server refuses such requests, the data set can't be read, or a library is missing.
        EngineError: no server is there, or it fails before the measurement.
    """
    try:
        from cupola.runtime.load_generator.session import run
    except ImportError as error:
        raise OptionError(f"{error.name} is missing", field="load test", fix="pip install 'cupola[bench]'") from None
    return run(test, on_done)
