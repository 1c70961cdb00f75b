"""The requirements with hashes that an image of the server installs: complete, pinned, and within what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cupola.runtime.structured.grammar import XGRAMMAR_VERSION

ROOT = Path(__file__).parents[1]


def pins_of(name: str) -> dict[str, str]:
    """The versions that a file pins, by name; every line must be a pin with its hashes."""
    lines = (ROOT / "requirements" / name).read_text("utf-8").replace("\\\n", " ").splitlines()
    pins = {}
    for line in lines:
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==([^ ]+)(?: +--hash=sha256:[0-9a-f]{64})+", line)
            assert match, f"no pin with hashes: {line}"
            pins[match[1]] = match[2]
    return pins


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["serve"]]]


@pytest.mark.parametrize("requirement", wanted(), ids=lambda requirement: requirement.name)
def test_serve_pins_a_version_that_pyproject_allows(requirement: Requirement) -> None:
    pins = pins_of("serve.txt")
    assert pins[canonicalize_name(requirement.name)] in requirement.specifier, "pyproject.toml asks for another: run `make requirements`"


def test_xgrammar_is_pinned_alone_and_is_the_one_whose_library_is_called() -> None:
    assert pins_of("xgrammar.txt") == {"xgrammar": XGRAMMAR_VERSION}


def test_no_registry_is_named() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in path.read_text("utf-8") and "index" not in path.read_text("utf-8")
