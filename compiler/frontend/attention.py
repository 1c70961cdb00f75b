"""Attention as the importer catches it: an opaque marker in the traced graph, in the place of a model's own attention.

It is caught in four ways: the attention interface of transformers, torch's scaled_dot_product_attention, a family's own `adapt`,
or, where a model writes it out, by the mask that it adds (`eager_attention`). Masks are caught as well: kernels know causality and
windows, so a model gets a `Mask` that says no more than that. A model that computes with its mask otherwise, or hands attention
anything else that changes the result, is refused by name.
"""

from __future__ import annotations

import contextlib
import inspect
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, causal_mask_function

from cupola.runtime.errors import UnsupportedError

UNNUMBERED = -1  # the layer of a marker until `number_layers` has seen the whole graph


@torch.library.custom_op("cupola::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """The marker: q [1,H,n,D], k [1,G,n,D], v [1,G,n,E] -> [1,n,H,E]. Only ever traced, never run."""
    raise AssertionError("the attention marker is for tracing only")


@attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    batch, heads, tokens, _ = q.shape
    return q.new_empty(batch, tokens, heads, v.shape[-1])


@torch.library.custom_op("cupola::masked", mutates_args=())
def masked(scores: torch.Tensor, window: int) -> torch.Tensor:
    """Scores [1,H,n,n] with a causal mask added, of the last `window` tokens (0: all). Only ever traced, never run."""
    raise AssertionError("the mask's marker is for tracing only")


@masked.register_fake
def _(scores: torch.Tensor, window: int) -> torch.Tensor:
    return torch.empty_like(scores)


def number_layers(graph: torch.fx.Graph) -> None:
    """Numbers the markers of a graph in their order: each has a K/V cache, or a state, of its own, whatever its module is called."""
    ours = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "cupola"]
    places = [(node, [argument.name for argument in node.target._schema.arguments]) for node in ours]
    for layer, (node, names) in enumerate((node, names) for node, names in places if "layer" in names):  # experts have none
        node.update_arg(names.index("layer"), layer)


class _AnySize:
    """The size of a mask, which equals whatever it is compared with."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


class Mask:
    """Stands where a model expects the mask of causal attention, of the last `window` tokens (0: all), and reaches attention in its place.

    One with a `problem` stands for a mask that kernels do not know. A decoder may make such masks and not use them, for an encoder
    that is not there, so it is refused where it reaches attention.

    Raises:
        UnsupportedError: when it is used for anything but being passed on, cut to the keys that there are, or added to scores.
    """

    def __init__(self, window: int = 0, problem: str | None = None) -> None:
        self.window, self.problem = window, problem

    def __getitem__(self, key: Any) -> Mask:
        parts = key if isinstance(key, tuple) else (key,)
        if all(part is Ellipsis or (isinstance(part, slice) and part.start in (None, 0) and part.step in (None, 1)) for part in parts):
            return self
        self._refuse("indexing")

    def size(self) -> _AnySize:
        """Whatever a model expects: a mask of attention has the size of the scores."""
        return _AnySize()

    def to(self, *_: Any, **__: Any) -> Mask:
        """The same mask: one that goes to another type says the same."""
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # Python's own questions
        self._refuse(name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> torch.Tensor:
        name = getattr(function, "__name__", str(function))
        if name in ("add", "__add__", "__radd__") and len(args) == 2 and not kwargs:
            mask, scores = args if isinstance(args[0], cls) else args[::-1]
            if isinstance(scores, torch.Tensor) and scores.dim() == 4:
                if mask.problem is not None:
                    raise UnsupportedError(mask.problem)
                return masked(scores, mask.window)
        cls._refuse(name)

    @staticmethod
    def _refuse(use: str) -> NoReturn:
        raise UnsupportedError(f"it computes with its attention mask ({use}), where kernels know only causality and windows")


def _mask(*_: Any, mask_function: Callable[..., Any] = causal_mask_function, attention_mask: Any = None, **__: Any) -> Mask:
    """In the place of a mask that transformers makes: its window, if it has one; what else it says is its problem."""
    if attention_mask is not None and not _is_of_ones(attention_mask):
        return Mask(problem="it masks some of its tokens by itself")
    parts = list(_mask_parts(mask_function))
    for name, _part in parts:
        if name not in _KNOWN_MASKS:
            return Mask(problem=f"its attention takes a mask of its own, {name}")
    windows = [inspect.getclosurevars(part).nonlocals["sliding_window"] for name, part in parts if name == "sliding_window_overlay"]
    return Mask(min(map(int, windows), default=0))


def _is_of_ones(mask: Any) -> bool:
    """True if the mask masks nothing: a model that wants a mask where none is given, as BioGPT does, traces as a call of `torch.ones`."""
    node = _traced(mask)
    return node is not None and node.target is torch.ops.aten.ones.default


def _traced(value: Any) -> torch.fx.Node | None:
    """The call that a tensor traces as, but for its type and device; None where nothing is traced, or it was written to since."""
    mode = get_proxy_mode()
    is_as_made = isinstance(value, torch.Tensor) and value._version == 0
    made = get_proxy_slot(value, mode.tracer, None) if mode is not None and is_as_made else None
    node = made.proxy.node if made is not None else None
    while node is not None and getattr(node.target, "overloadpacket", None) is torch.ops.aten.to:
        node = node.args[0]
    return node


def _mask_parts(function: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions of transformers.masking_utils that a mask is made of, with their names; a union with nothing is what it joins."""
    name = function.__qualname__.split(".")[0]
    members = inspect.getclosurevars(function).nonlocals["mask_functions"] if name == "or_masks" else ()
    others = [member for member in members if not _is_without_blocks(member)]
    if len(others) == 1 < len(members):
        yield from _mask_parts(others[0])
        return
    yield name, function
    for cell in function.__closure__ or ():
        contents = cell.cell_contents if isinstance(cell.cell_contents, tuple) else (cell.cell_contents,)
        for part in contents:
            if inspect.isfunction(part):
                yield from _mask_parts(part)


def _is_without_blocks(function: Callable[..., Any]) -> bool:
    """True for the mask by which tokens of an image see each other, where all are of block -1, as models number those of no image."""
    if not function.__qualname__.startswith("blockwise_overlay."):
        return False
    ids = inspect.getclosurevars(function).nonlocals["block_sequence_ids"]
    node = _traced(ids)
    if node is not None:
        return node.target is torch.ops.aten.full.default and isinstance(node.args[1], int) and node.args[1] < 0
    return not isinstance(ids, FakeTensor) and bool((ids < 0).all())


# Packed sequences are told from the inputs of a call; here sequences come with bounds of their own.
_KNOWN_MASKS = {
    "causal_mask_function", "sliding_window_overlay", "and_masks", "add_offsets_to_mask_function",
    "packed_sequence_mask_function", "packed_sequence_compatibility_function", "remap_positions_for_packed_sequence",
}  # fmt: skip


def _window_of(mask: Any, sliding_window: int | None, is_causal: bool, field: str) -> int:
    """The window of an attention, which models pass on as a number, as a mask, or as both; 0 is none."""
    if isinstance(mask, Mask):
        if mask.problem is not None:
            raise UnsupportedError(mask.problem, field=field)
        return mask.window or sliding_window or 0
    if mask is not None:
        raise UnsupportedError("its attention takes a mask of its own", field=field)
    if not is_causal:
        raise UnsupportedError("its attention sees later tokens", field=field, fix="causal language models compile")
    return sliding_window or 0


# What models hand to attention, and what changes nothing there: positions are in the rotated queries and keys already, and which rows
# get logits is chosen later.
_HARMLESS = {"position_ids", "cache_position", "deterministic", "logits_to_keep"}


def _attention_interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **_others: Any,  # transformers hands every implementation the arguments of all of them
) -> tuple[torch.Tensor, None]:
    field = type(module).__name__
    for name, value_given in _others.items():
        if name not in _HARMLESS and value_given is not None and value_given is not False:
            raise UnsupportedError(f"its attention takes {name}, which no kernel of cupola knows", field=field)
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not is_causal:
        raise UnsupportedError("its attention sees later tokens", field=field, fix="causal language models compile")
    window = _window_of(attention_mask, sliding_window, is_causal, field)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, None, s_aux, UNNUMBERED, float(scale), window, float(softcap or 0.0)), None


def _scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    window = _window_of(attn_mask, None, is_causal, "scaled_dot_product_attention")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attention(query, key, value, None, None, UNNUMBERED, float(scale), window, 0.0).transpose(1, 2)


transformers.AttentionInterface.register("cupola", _attention_interface)
AttentionMaskInterface.register("cupola", _mask)


@contextlib.contextmanager
def marked_sdpa() -> Iterator[None]:
    """Models that call scaled_dot_product_attention by themselves get the marker in its place; those and adapted ones get a `Mask`."""
    implementations = ("sdpa", "eager")
    ALL_MASK_ATTENTION_FUNCTIONS.update(dict.fromkeys(implementations, _mask))
    try:
        with unittest.mock.patch("torch.nn.functional.scaled_dot_product_attention", _scaled_dot_product_attention):
            yield
    finally:
        for name in implementations:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]


__all__ = ["Mask", "attention", "marked_sdpa", "number_layers"]
