"""The limit of open files is raised as far as the system allows, and no further."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from cupola.runtime.system.open_files import allow_open_files
from tests.systems import WITHOUT_POSIX, needs


@pytest.fixture
def hard() -> Iterator[int]:
    """The hard limit, where the soft one is 256."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@needs("limits of open files")
def test_the_soft_limit_is_raised_to_what_is_wanted(hard: int) -> None:
    assert allow_open_files(300) == 300
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)


@needs("limits of open files")
def test_a_soft_limit_that_is_high_enough_stays(hard: int) -> None:
    assert allow_open_files(100) == 256
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)


@needs("limits of open files")
def test_the_hard_limit_is_kept(hard: int) -> None:
    assert hard != resource.RLIM_INFINITY
    assert allow_open_files(hard + 1) == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.skipif(not WITHOUT_POSIX, reason="here the system has limits")
def test_where_nothing_limits_them_all_may_be_open() -> None:
    assert allow_open_files(10**9) == 10**9
