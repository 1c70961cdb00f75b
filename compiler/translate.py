"""A traced model, translated to Relax by TVM's own importer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from tvm import IRModule, relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from cupola.compiler.trace import WRAPPER, TracedModel
from cupola.runtime.errors import UnsupportedError
from cupola.targets import ops

ENTRY = "forward"
INPUTS = ("tokens", "positions", "logit_rows")


class _Importer(ExportedProgramImporter):
    """TVM's importer reads the value of every parameter; ours have none yet."""

    @staticmethod
    def _convert_pytorch_tensor_to_tvm(tensor_value: torch.Tensor) -> tvm.runtime.Tensor:
        if isinstance(tensor_value, torch.nn.Parameter):
            return tvm.runtime.tensor(0)
        return tvm.runtime.tensor(tensor_value.detach().contiguous().numpy())


def translate(traced: TracedModel, file: str) -> IRModule:
    """The module of one function, `forward(tokens, positions, logit_rows, weights…)`, weights named as in the model.

    Raises:
        UnsupportedError: naming an operation that TVM's importer does not know; `file` is for the message.
    """
    importer = _Importer()
    try:
        mod = importer.from_exported_program(
            traced.exported,
            keep_params_as_input=True,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=_CONVERTERS,
        )
    except Exception as error:  # an operation, or a use of one, that TVM's importer did not foresee
        with contextlib.suppress(tvm.error.InternalError):
            importer.block_builder._end_block()  # TVM's scope leaves it open, and warns about that when it goes
        raise UnsupportedError(f"TVM's importer stopped: {type(error).__name__}: {error}", file=file) from error
    return IRModule({ENTRY: _with_model_names(mod["main"], traced)})


def _with_model_names(func: relax.Function, traced: TracedModel) -> relax.Function:
    specs = traced.exported.graph_signature.input_specs
    names = {spec.arg.name: str(spec.target).removeprefix(WRAPPER) for spec in specs if spec.target}
    renamed = {var.name: relax.Var(names.get(var.name, var.name), var.ty) for var in func.params}
    binding = {var: renamed[var.name] for var in func.params}
    body = _Substitution(binding).visit_expr(func.body)
    attrs = {"num_input": len(INPUTS), "global_symbol": ENTRY}
    named = relax.Function(list(binding.values()), body, func.ret_ty).with_attrs(attrs)
    num_tokens, num_rows = (str(var.ty.shape[0].name) for var in (func.params[0], func.params[2]))
    return named.bind_symbolic_vars({num_tokens: tirx.Var("n", "int64"), num_rows: tirx.Var("r", "int64")})


@relax.expr_functor.mutator
class _Substitution(relax.PyExprMutator):
    def __init__(self, binding: dict[relax.Var, relax.Var]) -> None:
        super().__init__()
        self.binding = binding

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        return self.binding.get(var, var)


def _attention(node: fx.Node, importer: Any) -> relax.Var:
    q, k, v, slopes, sinks, layer, scale, window, softcap = importer.retrieve_args(node)
    batch, heads, tokens, _ = q.ty.shape
    marker = ops.Attention(q, k, v, slopes, sinks, layer, scale, window, softcap)
    return importer.block_builder.emit(marker.emit(relax.TensorType((batch, tokens, heads, v.ty.shape[3]), q.ty.dtype)))


def _repeat_interleave(node: fx.Node, importer: Any) -> relax.Var:
    value, repeats, *axis = importer.retrieve_args(node)
    return importer.block_builder.emit(relax.op.repeat(value, repeats, axis[0] if axis else node.kwargs.get("dim")))


def _layer_norm(node: fx.Node, importer: Any) -> relax.Var:
    """With weights and biases that may be None; TVM's importer expects them."""
    x, shape, *rest = importer.retrieve_args(node)
    weight, bias, epsilon = rest[:3] + [None, None, 1e-5][len(rest) :]
    sizes = [int(size) for size in shape]
    weight = relax.const(np.ones(sizes, "float32")) if weight is None else weight
    bias = relax.const(np.zeros(sizes, "float32")) if bias is None else bias
    axes = list(range(-len(sizes), 0))
    return importer.block_builder.emit(relax.op.nn.layer_norm(x, weight, bias, axes=axes, epsilon=epsilon))


def _reverse_axes(node: fx.Node, importer: Any) -> relax.Var:
    return importer.block_builder.emit(relax.op.permute_dims(importer.retrieve_args(node)[0]))


def _same_value(node: fx.Node, importer: Any) -> relax.Var:
    return importer.retrieve_args(node)[0]


# What TVM's importer lacks: our marker, and torch functions that its decomposition would have removed.
_CONVERTERS: dict[str, Callable[[fx.Node, Any], relax.Var]] = {
    "attention.default": _attention,
    "repeat_interleave.self_int": _repeat_interleave,
    "layer_norm.default": _layer_norm,
    "numpy_T.default": _reverse_axes,
    "to.device": _same_value,  # dtype stays: the model is traced in f32 throughout
}
