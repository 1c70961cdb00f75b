"""A transformers model, without its weights, traced to a graph in which attention is one opaque operation.

The model is built on the meta device, so tracing costs no memory for weights. Attention is caught in three ways: the
attention interface of transformers, torch's scaled_dot_product_attention, or a family's own `adapt`.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import unittest.mock
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, causal_mask_function

from cupola.compiler.rope import fix_rope
from cupola.compiler.token_mixing import check_token_mixing
from cupola.models import Family, find_family
from cupola.runtime.errors import SourceError, UnsupportedError

MAX_TOKENS = 1 << 20  # an upper bound for torch's solver; nothing is allocated by it
TRACED_TOKENS, TRACED_ROWS = 7, 3  # any values above 1 that differ
_PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)  # what dimensions seldom are
WRAPPER = "model."  # the prefix that `_Wrapper` puts before every parameter's name


@dataclass(frozen=True)
class TracedModel:
    """A traced model.

    Attributes:
        exported: the graph, with the values of constants and buffers; inputs tokens i32 [n], positions i32 [n], rows i32 [r];
            output logits f32 [r, vocab].
        parameters: the shape of every parameter, by its name in the model, ties removed.
        tied: names that share a parameter with another name: alias -> name in `parameters`.
        base_model_prefix: the name of the model's trunk, which some checkpoints leave out.
        family: the verified family, or None.
        notes: for people: what was decided while tracing.
    """

    exported: torch.export.ExportedProgram
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    base_model_prefix: str
    family: Family | None
    notes: tuple[str, ...] = ()


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
    **_: Any,  # transformers hands every implementation the arguments of all of them
) -> tuple[torch.Tensor, None]:
    window = _window_of(attention_mask, sliding_window, type(module).__name__)
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise UnsupportedError("its attention sees later tokens", field=type(module).__name__, fix="causal language models compile")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attention(query, key, value, None, s_aux, module.layer_idx, float(scale), window, float(softcap or 0.0))
    return out, None


@dataclass(frozen=True)
class _Window:
    """Stands where a model expects the mask of a sliding window, and reaches attention in its place."""

    size: int


def _window_of(mask: Any, sliding_window: int | None, field: str) -> int:
    """The window of an attention, which models pass on as a number, as a mask, or as both; 0 is none."""
    if mask is not None and not isinstance(mask, _Window):
        raise UnsupportedError("its attention takes a mask of its own", field=field)
    return sliding_window or (mask.size if mask else 0)


def _mask(*_: Any, mask_function: Callable[..., Any] = causal_mask_function, **__: Any) -> _Window | None:
    """In the place of a mask: its window, if it has one, since kernels know causality; other masks are refused."""
    parts = list(_mask_parts(mask_function))
    for name, _part in parts:
        if name not in _KNOWN_MASKS:
            raise UnsupportedError(f"its attention takes a mask of its own, {name}")
    windows = [inspect.getclosurevars(part).nonlocals["sliding_window"] for name, part in parts if name == "sliding_window_overlay"]
    return _Window(int(windows[0])) if windows else None


def _mask_parts(function: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions of transformers.masking_utils that a mask is made of, with their names."""
    yield function.__qualname__.split(".")[0], function
    for cell in function.__closure__ or ():
        contents = cell.cell_contents if isinstance(cell.cell_contents, tuple) else (cell.cell_contents,)
        for part in contents:
            if inspect.isfunction(part):
                yield from _mask_parts(part)


# Packed sequences and padding are told from the inputs of a call; here sequences come with bounds of their own.
_KNOWN_MASKS = {
    "causal_mask_function", "sliding_window_overlay", "and_masks", "padding_mask_function", "add_offsets_to_mask_function",
    "packed_sequence_mask_function", "packed_sequence_compatibility_function", "remap_positions_for_packed_sequence",
}  # fmt: skip
transformers.AttentionInterface.register("cupola", _attention_interface)
AttentionMaskInterface.register("cupola", _mask)


class _Wrapper(nn.Module):
    """Flat inputs in, logits of the chosen rows out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        more = {"position_ids": positions[None]} if self.takes_positions else {}
        out = self.model(input_ids=tokens[None], logits_to_keep=logit_rows, use_cache=False, **more)
        return out.logits[0]


def trace(config: Mapping[str, Any], file: str, context: int) -> TracedModel:
    """Traces the causal language model that `config` (the content of config.json) describes.

    Args:
        config: the content of config.json.
        file: for errors.
        context: tokens that a sequence may have; some models scale their positions by it.

    Raises:
        SourceError: the configuration makes no model.
        UnsupportedError: the model cannot be traced, or carries state other than through attention.
    """
    family = find_family(config["model_type"])
    with _quiet():
        model = _build(config, family, file)
        _materialize_buffers(model)
        notes = fix_rope(model, context)
        if family is not None and family.adapt is not None:
            family.adapt(model, attention)
        tied = _tied_names(model)
        exported = _export(_with_fake_parameters(model), config["model_type"], file)
    check_token_mixing(exported, config["model_type"], file)
    parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return TracedModel(exported, parameters, tied, model.base_model_prefix, family, notes)


def _build(config: Mapping[str, Any], family: Family | None, file: str) -> Any:
    content = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "quantization_config")}
    implementation = family.attention if family else "cupola"
    try:
        settings = transformers.AutoConfig.for_model(**content)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation=implementation, dtype=torch.float32)
    except Exception as error:  # whatever transformers' constructors raise, the configuration caused it
        if isinstance(error, KeyError) and error.args == (implementation,):
            problem = "the family has a closed set of attention implementations, which leaves none to put in their place"
            raise UnsupportedError(problem, file=file, field=config["model_type"]) from error
        raise SourceError(
            _first_line(error), file=file, fix="the configuration does not describe a model that transformers can build"
        ) from error
    return model.eval()


def _materialize_buffers(model: Any) -> None:
    """Computes the buffers that checkpoints leave out (rotary frequencies), as transformers does after loading."""
    for module in model.modules():
        missing = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
        for name in missing:
            module._buffers[name] = torch.zeros_like(module._buffers[name], device="cpu")
        if missing:
            model._init_weights(module)


def _tied_names(model: nn.Module) -> dict[str, str]:
    names: dict[int, str] = {id(value): name for name, value in model.named_parameters()}
    return {name: names[id(value)] for name, value in model.named_parameters(remove_duplicate=False) if names[id(value)] != name}


def _with_fake_parameters(model: Any) -> Any:
    """Puts memory-less parameters on the CPU: constants that the model makes as it runs then keep their values."""
    for module in model.modules():
        for name in [name for name, value in module._buffers.items() if value is not None and value.is_meta]:
            buffer = module._buffers.pop(name)  # a checkpoint holds it, so to a compiler it is a weight
            module._parameters[name] = nn.Parameter(buffer, requires_grad=False)
    fakes: dict[int, nn.Parameter] = {}  # by the identity of the parameter, so that tied ones stay tied
    with FakeTensorMode(allow_non_fake_inputs=True):
        for value in model.parameters():
            fakes[id(value)] = nn.Parameter(torch.empty_like(value, device="cpu"), requires_grad=False)
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False):
            module._parameters[name] = fakes[id(value)]
    return model


def _export(model: Any, model_type: str, file: str) -> torch.export.ExportedProgram:
    tokens, rows = torch.export.Dim("n", min=2, max=MAX_TOKENS), torch.export.Dim("r", min=2, max=MAX_TOKENS)
    dynamic = {"tokens": {0: tokens}, "positions": {0: tokens}, "logit_rows": {0: rows}}
    try:
        return _run_export(model, TRACED_TOKENS, dynamic)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, file=file, field=model_type) from error
    except Exception as error:  # torch.export fails in many ways; the model's code is the cause of each
        _refuse_token_mixing(model, model_type, file)
        reason = f"torch.export could not trace the model: {_first_line(error)}"
        raise UnsupportedError(reason, file=file, field=model_type, fix="CUPOLA_DEBUG=1 shows torch's full message") from error


def _run_export(model: Any, num_tokens: int, dynamic: dict[str, Any] | None) -> torch.export.ExportedProgram:
    flat = torch.zeros(num_tokens, dtype=torch.int32)
    inputs = (flat, flat.clone(), torch.zeros(TRACED_ROWS, dtype=torch.int32))
    with torch.no_grad(), _marked_sdpa():
        return torch.export.export(_Wrapper(model).eval(), inputs, dynamic_shapes=dynamic, strict=False)


def _refuse_token_mixing(model: Any, model_type: str, file: str) -> None:
    """Says by name which layer mixes tokens, if that is why a model does not trace with any number of tokens.

    Raises:
        UnsupportedError: from `check_token_mixing`, on a trace with a number of tokens that no dimension equals.
    """
    sizes = {size for value in itertools.chain(model.parameters(), model.buffers()) for size in value.shape}
    num_tokens = next(prime for prime in _PRIMES if prime not in sizes)
    try:
        exported = _run_export(model, num_tokens, None)
    except Exception:  # noqa: BLE001  it only serves a better message; the caller raises what it has
        return
    check_token_mixing(exported, model_type, file)


@contextlib.contextmanager
def _marked_sdpa() -> Iterator[None]:
    """Models that call scaled_dot_product_attention by themselves get the marker in its place, and no mask."""
    layers = itertools.count()

    def marked(q: Any, k: Any, v: Any, attn_mask: Any = None, scale: float | None = None, **_: Any) -> torch.Tensor:
        window = _window_of(attn_mask, None, "scaled_dot_product_attention")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return attention(q, k, v, None, None, next(layers), scale, window, 0.0).transpose(1, 2)

    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = _mask
    try:
        with unittest.mock.patch("torch.nn.functional.scaled_dot_product_attention", marked):
            yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch and transformers log while they trace; what goes wrong is raised."""
    verbosity, level = transformers.logging.get_verbosity(), logging.root.manager.disable
    transformers.logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        transformers.logging.set_verbosity(verbosity)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
