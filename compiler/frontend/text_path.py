"""The part of a model of text and images, or sound, that token ids reach: towers and projectors are left out before it is traced."""

from __future__ import annotations

import contextlib
import unittest.mock
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class _UsedParameters(TorchFunctionMode):
    """Remembers the parameters that functions compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") != "__get__":  # asks for a shape or a dtype
            self.found |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter)}
        return function(*args, **(kwargs or {}))


def text_path(model: nn.Module, run: Callable[[], object]) -> tuple[set[str], set[str] | None]:
    """The modules that a model runs, and the parameters that it computes with, where it is called with token ids alone.

    Args:
        model: with parameters that take no memory.
        run: calls it.

    Returns:
        The paths of the modules that ran, with those around them, as far as the call came; the names of the parameters that it
        used, or None if it failed.
    """
    ran: set[int] = set()
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _: ran.add(id(module)))
    try:
        with _UsedParameters() as used:
            run()
        parameters = {name for name, value in model.named_parameters(remove_duplicate=False) if id(value) in used.found}
    except Exception:  # noqa: BLE001  tracing meets it again, and says what it is
        parameters = None
    finally:
        hook.remove()
    modules = {path for path, module in model.named_modules() if id(module) in ran}
    return {".".join(path.split(".")[:depth]) for path in modules for depth in range(path.count(".") + 2)}, parameters


def leave_out(model: Any, kept: set[str]) -> tuple[str, ...]:
    """Takes away all parameters but those of the given names; returns their names."""
    removed = []
    for path, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{path}.{name}" if path else name
            if full not in kept and value is not None:
                removed.append(full)
    for full in removed:
        path, _, name = full.rpartition(".")
        model.get_submodule(path)._parameters[name] = None
    return tuple(removed)


@contextlib.contextmanager
def without_timm() -> Any:
    """Towers that want the timm library are built empty, which tokens never reach; a model's own code does without it."""
    from transformers.models.timm_wrapper import modeling_timm_wrapper as timm_wrapper

    def build(self: Any, config: Any) -> None:
        super(timm_wrapper.TimmWrapperModel, self).__init__(config)

    original = timm_wrapper.TimmWrapperModel.__init__
    timm_wrapper.TimmWrapperModel.__init__ = build
    try:
        yield
    finally:
        timm_wrapper.TimmWrapperModel.__init__ = original


@contextlib.contextmanager
def without_towers() -> Any:
    """Towers say where they are though their parameters were left out, as Qwen2-Audio asks: all is traced on the CPU, in float32."""
    model = transformers.PreTrainedModel
    on_cpu, in_f32 = property(lambda _: torch.device("cpu")), property(lambda _: torch.float32)
    with unittest.mock.patch.object(model, "device", on_cpu), unittest.mock.patch.object(model, "dtype", in_f32):
        yield


def parts_of(names: Iterable[str]) -> str:
    """The parts of a model that parameters belong to, for a note: `model.vision_tower and model.multi_modal_projector`."""
    parts = dict.fromkeys(".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in names)
    return " and ".join(parts)
