"""A transformers model, without its weights, traced to a graph in which attention is one opaque operation.

The model is built on the meta device, so tracing costs no memory for weights. `compiler/frontend/attention.py` catches attention.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cupola.compiler.frontend.attention import attention, marked_sdpa, number_layers
from cupola.compiler.frontend.complex_rope import real_numbers_only
from cupola.compiler.frontend.cross_token_check import check_token_mixing
from cupola.compiler.frontend.eager_attention import find_attention
from cupola.compiler.frontend.experts import mark_experts
from cupola.compiler.frontend.first_tokens import keep_first_tokens
from cupola.compiler.frontend.functionalize import functionalize
from cupola.compiler.frontend.language_adapters import keep_default_language
from cupola.compiler.frontend.model_parts import refuse_unsupported_parts
from cupola.compiler.frontend.positions import Positions
from cupola.compiler.frontend.recurrence import marked_recurrences
from cupola.compiler.frontend.rope import fix_rope
from cupola.compiler.frontend.text_path import leave_out, text_path, without_timm, without_towers
from cupola.compiler.sources import LazyTensor, Naming, text_fields
from cupola.models import Family, find_family
from cupola.models.family import AttentionMarker
from cupola.runtime.errors import SourceError, UnsupportedError

MAX_TOKENS = 1 << 20  # an upper bound for torch's solver; nothing is allocated by it
TRACED_TOKENS, TRACED_ROWS = 7, 3  # any values above 1 that differ
_PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103)  # what dimensions seldom are
Bind = Callable[[dict[str, tuple[int, ...]], Naming, dict[str, str], tuple[str, ...]], Mapping[str, LazyTensor]]
WRAPPER = "model."  # the prefix that `_Wrapper` puts before every parameter's name


@dataclass(frozen=True)
class TracedModel:
    """A traced model.

    Attributes:
        exported: the graph, with the values of constants and buffers; inputs tokens i32 [n], positions i32 [n], rows i32 [r];
            output logits f32 [r, vocab].
        parameters: the shape of every parameter, by its name in the model, ties removed.
        tied: names that share a parameter with another name: alias -> name in `parameters`.
        naming: how checkpoints name its tensors.
        family: the verified family, or None.
        notes: for people: what was decided while tracing.
        max_positions: tokens that a sequence may have by the model's table of positions, where that is less than its configuration says.
        weights: the tensor of every parameter, as `bind` found them.
        left_out: names of the parameters that token ids do not reach, in a model of text and images or sound.
        padding: the id of a token that the model's positions do not count, or None.
    """

    exported: torch.export.ExportedProgram
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    naming: Naming
    family: Family | None
    notes: tuple[str, ...] = ()
    max_positions: int | None = None
    weights: Mapping[str, LazyTensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    padding: int | None = None


class _Wrapper(nn.Module):
    """Flat inputs in, logits of the chosen rows out."""

    def __init__(self, model: nn.Module, positions: Positions) -> None:
        super().__init__()
        self.model, self.positions = model, positions
        self.picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        arguments = self.positions.arguments(positions)
        if self.picks_rows:
            return self.model(input_ids=tokens[None], logits_to_keep=logit_rows, use_cache=False, **arguments).logits[0]
        return self.model(input_ids=tokens[None], use_cache=False, **arguments).logits[0, logit_rows]


def trace(config: Mapping[str, Any], file: str, context: int, bind: Bind = lambda *_: {}, first_tokens: int | None = None) -> TracedModel:
    """Traces the causal language model that `config` (the content of config.json) describes.

    Args:
        config: the content of config.json.
        file: for errors.
        context: tokens that a sequence may have; some models scale their positions by it.
        bind: finds the weights, by `parameters`, `naming`, `tied` and `left_out`; called before the slow part, so that
            those which don't fit are refused early.
        first_tokens: of which alone the model gives logits; None are all.

    Raises:
        SourceError: the configuration makes no model.
        OptionError: it has no more tokens than `first_tokens`.
        UnsupportedError: the model cannot be traced, or carries state other than through attention.
        InputError: what `bind` raises.
    """
    family = find_family(config["model_type"])
    text = text_fields(config)
    with _quiet():
        model = _build(config, family, file, is_text=text is config)
        _materialize_buffers(model)
        notes = (*fix_rope(model, context), *keep_default_language(model, file))
        if family is not None and family.adapt is not None:
            _adapt(model, family.adapt, file)
        if first_tokens is not None:
            notes += (keep_first_tokens(model, first_tokens, file),)
        model = _with_fake_parameters(model)
        positions = Positions(model, "position_ids" in inspect.signature(model.forward).parameters)
        left_out = () if text is config else _leave_out_towers(model, positions, config["model_type"], file)
        tied = _tied_names(model)
        parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
        naming = Naming.of(model)
        weights = bind(parameters, naming, tied, left_out)
        exported = _export(model, positions, config["model_type"], file)
        exported = functionalize(exported, config["model_type"], file)
    _find_attention(exported, config["model_type"], file)
    check_token_mixing(exported, config["model_type"], file)
    number_layers(exported.graph)
    verified = family or _family_of_text(text)
    return TracedModel(exported, parameters, tied, naming, verified, notes, positions.limit, weights, left_out, positions.padding)


def _family_of_text(text: Mapping[str, Any]) -> Family | None:
    """The family of a text model inside another one, whose code is that of the family's unless the family is adapted."""
    family = find_family(str(text.get("model_type")))
    return None if family is None or family.adapt else family


def _leave_out_towers(model: Any, positions: Positions, model_type: str, file: str) -> tuple[str, ...]:
    """Takes away what token ids do not reach. Raises UnsupportedError where they reach a part that cupola lacks."""
    modules, parameters = text_path(model, lambda: _run(_Wrapper(model, positions)))
    refuse_unsupported_parts(model, model_type, file, modules)
    return leave_out(model, parameters) if parameters else ()


def _run(wrapper: _Wrapper) -> None:
    with torch.no_grad(), marked_sdpa(), marked_recurrences(wrapper), real_numbers_only():
        wrapper.eval()(*_inputs(TRACED_TOKENS))


def _build(config: Mapping[str, Any], family: Family | None, file: str, is_text: bool) -> Any:
    content = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "quantization_config")}
    implementation = family.attention if family else "cupola"
    try:
        model = _instantiate(content, implementation, is_text)
    except Exception as error:  # whatever transformers' constructors raise, the configuration caused it
        raise SourceError(
            _first_line(error), file=file, fix="the configuration does not describe a model that transformers can build"
        ) from error
    if is_text:
        refuse_unsupported_parts(model, config["model_type"], file)
    mark_experts(model)
    return model.eval()


def _instantiate(content: Mapping[str, Any], implementation: str, is_text: bool) -> Any:
    """The model, on the meta device. Parts that know none but their own attention, as SAM's tower does, get that."""
    settings = transformers.AutoConfig.for_model(**content)
    auto = transformers.AutoModelForCausalLM if is_text else transformers.AutoModelForMultimodalLM
    text = settings.get_text_config(decoder=True)
    of_towers = {name: "eager" for name in settings.sub_configs if getattr(settings, name, None) is not text}

    def make(chosen: str | dict[str, str]) -> Any:
        with torch.device("meta"), without_timm():
            return auto.from_config(settings, attn_implementation=chosen, dtype=torch.float32)

    for chosen in (implementation, {"": implementation, **of_towers}):
        try:
            return make(chosen)
        except KeyError as error:
            if error.args != (implementation,):
                raise
    return make("eager")


def _materialize_buffers(model: Any) -> None:
    """Computes the buffers that checkpoints leave out (rotary frequencies), as transformers does after loading."""
    owners: dict[Any, Any] = {}  # module -> the innermost model that holds it, whose initialization is meant
    for owner in model.modules():
        if isinstance(owner, transformers.PreTrainedModel):
            owners.update(dict.fromkeys(owner.modules(), owner))
    for module, owner in owners.items():
        missing = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
        for name in missing:
            module._buffers[name] = torch.zeros_like(module._buffers[name], device="cpu")
        if missing:
            owner._init_weights(module)
            owner._init_weights(owner)  # which computes some of them for its parts


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


def _export(model: Any, positions: Positions, model_type: str, file: str) -> torch.export.ExportedProgram:
    tokens, rows = torch.export.Dim("n", min=2, max=MAX_TOKENS), torch.export.Dim("r", min=2, max=MAX_TOKENS)
    dynamic = {"tokens": {0: tokens}, "positions": {0: tokens}, "logit_rows": {0: rows}}
    try:
        return _run_export(model, positions, TRACED_TOKENS, dynamic)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, file=file, field=model_type) from error
    except Exception as error:  # torch.export fails in many ways; the model's code is the cause of each
        _refuse_token_mixing(model, positions, model_type, file)
        reason = f"torch.export could not trace the model: {_first_line(error)}"
        raise UnsupportedError(reason, file=file, field=model_type, fix="CUPOLA_DEBUG=1 shows torch's full message") from error


def _adapt(model: Any, adapt: Callable[[Any, AttentionMarker], None], file: str) -> None:
    try:
        adapt(model, attention)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, file=file, field=error.field, fix=error.fix) from error


def _find_attention(exported: torch.export.ExportedProgram, model_type: str, file: str) -> None:
    try:
        find_attention(exported)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, file=file, field=model_type) from error


def _run_export(model: Any, positions: Positions, num_tokens: int, dynamic: dict[str, Any] | None) -> torch.export.ExportedProgram:
    with torch.no_grad(), without_towers(), marked_sdpa(), marked_recurrences(model), real_numbers_only():
        return torch.export.export(_Wrapper(model, positions).eval(), _inputs(num_tokens), dynamic_shapes=dynamic, strict=False)


def _inputs(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = torch.zeros(num_tokens, dtype=torch.int32)
    return flat, flat.clone(), torch.zeros(TRACED_ROWS, dtype=torch.int32)


def _refuse_token_mixing(model: Any, positions: Positions, model_type: str, file: str) -> None:
    """Says by name which layer mixes tokens, if that is why a model does not trace with any number of tokens.

    Raises:
        UnsupportedError: from `check_token_mixing`, on a trace with a number of tokens that no dimension equals.
    """
    sizes = {size for value in itertools.chain(model.parameters(), model.buffers()) for size in value.shape}
    num_tokens = next(prime for prime in _PRIMES if prime not in sizes)
    try:
        exported = _run_export(model, positions, num_tokens, None)
    except Exception:  # noqa: BLE001  it only serves a better message; the caller raises what it has
        return
    exported = functionalize(exported, model_type, file)
    _find_attention(exported, model_type, file)
    check_token_mixing(exported, model_type, file)


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
