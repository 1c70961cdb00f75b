"""Bodies that are no request: group 1 of the bad inputs."""

from __future__ import annotations

import pytest

from tests.runtime.server.harness import COMPLETIONS, Server, error_of


def test_empty(server: Server):
    print(error_of(server.post(b"")))
