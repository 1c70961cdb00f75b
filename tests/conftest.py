"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

# Compiled code and a shared machine make single examples slow now and then: no deadline. `make test` takes
# hypothesis' own "ci" profile, whose examples are the same on every run.
settings.register_profile("cupola", deadline=None)
settings.load_profile("cupola")


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what the developer set, and their cache, out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUPOLA_DEBUG", raising=False)
        patch.setenv("CUPOLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
