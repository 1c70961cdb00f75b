"""Ctrl-C and SIGTERM while TVM runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def keep_signals() -> Iterator[None]:
    """Raises what a signal's handler raised, KeyboardInterrupt most often, unchanged at the end of the block.

    TVM turns it into a RuntimeError where Python code runs inside of TVM, as passes do.
    """
    raised: list[BaseException] = []

    def keep(handler: Handler) -> Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as error:
                raised.append(error)
                raise

        return handle

    in_main = threading.current_thread() is threading.main_thread()  # only there Python may set handlers
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, keep(handler))
    try:
        yield
    except Exception:
        if raised:
            raise raised[0] from None
        raise
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
