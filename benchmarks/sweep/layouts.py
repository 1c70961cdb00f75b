"""The names under which checkpoints hold the tensors of one model of text and something else: each that transformers loads must bind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from cupola.compiler.frontend.trace import trace
from cupola.compiler.sources import LazyTensor, bind_weights, open_source

# A pattern of the model's own names -> what it is in a layout; the first that matches counts.
LAYOUTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "model.language_model.…": (),
    "language_model.model.…": (
        (r"^model\.language_model\.", "language_model.model."), (r"^lm_head\.", "language_model.lm_head."), (r"^model\.", ""),
    ),
    "model.…": ((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")),
}  # fmt: skip


class _Bound(Exception):
    """Ends tracing once the weights are bound."""


def misbound(model: Any, folder: Path) -> str:
    """Which layout binds a parameter to something else than its tensor, and which one; "" if none does. Raises InputError."""
    own = {name: value.contiguous() for name, value in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for number, (layout, rules) in enumerate(LAYOUTS.items()):
        tensors = {_renamed(name, rules): value.clone() for name, value in own.items() if name not in tied}
        path = folder / f"layout {number}"
        path.mkdir()
        model.config.save_pretrained(path)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        if len(tensors) == len(own) - len(tied & own.keys()) and _transformers_loads(type(model), path, own):
            wrong = [name for name, tensor in _bound(path).items() if not np.array_equal(tensor.load(), own[name].numpy())]
            if wrong:
                return f"with tensors named {layout}, {wrong[0]} is another one"
    return ""


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    return next((re.sub(pattern, new, name) for pattern, new in rules if re.search(pattern, name)), name)


def _transformers_loads(model_class: Any, path: Path, own: Mapping[str, Any]) -> bool:
    try:
        loaded, info = model_class.from_pretrained(path, output_loading_info=True)
    except Exception:  # noqa: BLE001  a layout that the type never had
        return False
    values = loaded.state_dict()
    return not info["missing_keys"] and all(np.array_equal(values[name].numpy(), value.numpy()) for name, value in own.items())


def _bound(path: Path) -> dict[str, LazyTensor]:
    source, found = open_source(path), dict[str, LazyTensor]()

    def bind(*given: Any) -> dict[str, LazyTensor]:
        found.update(bind_weights(source, *given))
        raise _Bound

    try:
        trace(source.config, source.name, 64, bind)
    except _Bound:
        return found
    raise AssertionError("tracing binds the weights")
