"""Tests that want what `tests/without_posix` takes away."""

from __future__ import annotations

import sys

import pytest

WITHOUT_POSIX = "without_posix" in sys.modules


def needs(what: str) -> pytest.MarkDecorator:
    """Skips a test where POSIX is taken away."""
    return pytest.mark.skipif(WITHOUT_POSIX, reason=f"needs {what}, which systems without POSIX have not")
