"""An exception raised inside of TVM, by Ctrl-C or by a pass, is the same outside of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import tvm

from cupola.compiler.pipeline import run_passes
from cupola.compiler.signals import keep_signals
from cupola.runtime.errors import UnsupportedError


@pytest.fixture(autouse=True)
def heed_interrupts() -> Iterator[None]:
    """As in a shell's foreground; jobs in its background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_inside_tvm(what: object) -> None:
    """Runs Python code in a pass, which TVM calls."""

    @tvm.transform.module_pass(opt_level=0)
    def run(mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        what()
        return mod

    tvm.transform.Sequential([run])(tvm.IRModule())


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_tvm_hides_an_interrupt() -> None:
    with pytest.raises(RuntimeError):  # if not, `keep_signals` can go
        run_inside_tvm(interrupt)


def test_an_interrupt_comes_out_as_itself() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), keep_signals():
        run_inside_tvm(interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="division"), keep_signals():
        run_inside_tvm(lambda: 1 // 0)
    with pytest.raises(ValueError), keep_signals():
        raise ValueError


def test_what_a_pass_refuses_is_bad_input_and_no_bug() -> None:
    @tvm.transform.module_pass(opt_level=0)
    def refuse(mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        raise UnsupportedError("has no kernel", field="target x", fix="take another")

    with pytest.raises(UnsupportedError, match=r"^target x: has no kernel \(take another\)$"):
        run_passes(tvm.IRModule(), [refuse])


def test_in_a_thread_nothing_is_set() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with keep_signals():
                run_inside_tvm(int)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
