"""Counts the instructions of TVM's virtual machine in one call of `forward`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tvm


@dataclass(frozen=True)
class Instructions:
    """Calls of kernels, and all else: shapes, tensors, storage, checks."""

    kernels: int
    others: int


def count_instructions(library: Path) -> Instructions:
    """The instructions of `forward` in a compiled library."""
    text = tvm.runtime.load_module(str(library))["as_text"]()
    forward = text.partition("@forward:")[2].partition("\n@")[0]
    called = re.findall(r"^ +call +(\S+)", forward, re.MULTILINE)
    builtins = [name for name in called if name.startswith("vm.builtin.")]
    return Instructions(len(called) - len(builtins), len(builtins))
