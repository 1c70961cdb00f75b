"""Model families: only what tracing cannot know, and which families are verified.

Each file of this folder but `family.py` is a family, and is found by being there. A family that is not here still compiles, with
a note that nobody verified it.
"""

import importlib
import pkgutil

from cupola.models.family import Family


def _families() -> tuple[Family, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "family")
    return tuple(importlib.import_module(f"{__name__}.{name}").FAMILY for name in names)


FAMILIES: tuple[Family, ...] = _families()
"""Every verified family, in alphabetical order."""


def find_family(model_type: str) -> Family | None:
    """The verified family of that name, or None."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


__all__ = ["FAMILIES", "Family", "find_family"]
