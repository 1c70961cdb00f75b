"""The bar that `LLM.generate` can show: tqdm's, which cupola does without."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cupola.runtime.errors import OptionError

UseTqdm = bool | Callable[..., Any]
Advance = Callable[[int], object]


@contextmanager
def progress_bar(use_tqdm: UseTqdm, total: int) -> Iterator[Advance | None]:
    """A function that takes the number of newly finished prompts; None without a progress bar. Raises OptionError without tqdm."""
    if use_tqdm is False:
        yield None
        return
    make = _find_tqdm() if use_tqdm is True else use_tqdm
    if not callable(make):
        raise OptionError(f"is {use_tqdm!r:.60}", field="use_tqdm", fix="give true, false, or what makes a bar as tqdm.tqdm does")
    with make(total=total, desc="Processed prompts", dynamic_ncols=True) as bar:
        yield bar.update


def _find_tqdm() -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        raise OptionError("needs tqdm, which is not installed", field="use_tqdm", fix="pip install tqdm, or set it to false") from None
    return found
