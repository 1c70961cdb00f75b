"""Rotary embedding by complex numbers (DeepSeek V2, Llama 4), which Relax does not have: pairs of real tensors in their place."""

from __future__ import annotations

import contextlib
import unittest.mock
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Complex:
    """A complex tensor, as far as rotating heads needs one."""

    real: torch.Tensor
    imag: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where its parts are."""
        return self.real.device

    def __mul__(self, other: Complex | torch.Tensor | float) -> Complex:
        if isinstance(other, Complex):
            return Complex(self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real)
        return Complex(self.real * other, self.imag * other)

    def __getitem__(self, index: Any) -> Complex:
        return Complex(self.real[index], self.imag[index])

    def unsqueeze(self, axis: int) -> Complex:
        """With an axis of 1 more."""
        return Complex(self.real.unsqueeze(axis), self.imag.unsqueeze(axis))

    def to(self, *_: Any, **__: Any) -> Complex:
        """The same: all is traced in float32, on one device."""
        return self


def _polar(magnitude: torch.Tensor, angle: torch.Tensor) -> Complex:
    return Complex(magnitude * angle.cos(), magnitude * angle.sin())


def _view_as_complex(x: torch.Tensor) -> Complex:
    return Complex(x[..., 0], x[..., 1])


def _view_as_real(x: Complex) -> torch.Tensor:
    return torch.stack([x.real, x.imag], dim=-1)


@contextlib.contextmanager
def real_numbers_only() -> Iterator[None]:
    """Within it, torch makes, multiplies and takes apart complex numbers as pairs of real ones."""
    replaced = {"polar": _polar, "view_as_complex": _view_as_complex, "view_as_real": _view_as_real}
    with contextlib.ExitStack() as patches:
        for name, function in replaced.items():
            patches.enter_context(unittest.mock.patch(f"torch.{name}", function))
        yield
