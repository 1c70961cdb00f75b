"""A traced model, translated to Relax by TVM's own importer."""

from __future__ import annotations

import contextlib

import torch
import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from cupola.compiler.frontend.converters import CONVERTERS
from cupola.compiler.frontend.trace import WRAPPER, TracedModel
from cupola.runtime.errors import UnsupportedError

ENTRY = "forward"
INPUTS = ("tokens", "positions", "logit_rows")


class _Importer(ExportedProgramImporter):
    """TVM's importer reads the value of every parameter; ours have none yet."""

    @staticmethod
    def _convert_pytorch_tensor_to_tvm(tensor_value: torch.Tensor) -> tvm.runtime.Tensor:
        if isinstance(tensor_value, torch.nn.Parameter):
            return tvm.runtime.tensor(0)
        wide = tensor_value.float() if tensor_value.dtype == torch.bfloat16 else tensor_value  # which numpy lacks
        return tvm.runtime.tensor(wide.detach().contiguous().numpy())


def translate(traced: TracedModel, file: str) -> IRModule:
    """The module of one function, `forward(tokens, positions, logit_rows, weights…)`, weights named as in the model.

    Raises:
        UnsupportedError: naming an operation that TVM's importer does not know; `file` is for the message.
    """
    return IRModule({ENTRY: _with_model_names(to_relax(traced.exported, file)["main"], traced)})


def to_relax(exported: torch.export.ExportedProgram, file: str) -> IRModule:
    """The module of one function, `main`, that TVM's importer and our own converters make of a graph.

    Raises:
        UnsupportedError: as `translate` does.
    """
    _check_rounding(exported, file)
    importer = _Importer()
    try:
        return importer.from_exported_program(
            exported,
            keep_params_as_input=True,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=CONVERTERS,
        )
    except Exception as error:  # an operation, or a use of one, that TVM's importer did not foresee
        with contextlib.suppress(tvm.error.InternalError):
            importer.block_builder._end_block()  # TVM's scope leaves it open, and warns about that when it goes
        raise UnsupportedError(f"TVM's importer stopped: {type(error).__name__}: {error}", file=file) from error


def _check_rounding(exported: torch.export.ExportedProgram, file: str) -> None:
    """Constants in bfloat16 become float32: whatever is computed of them would round otherwise, unless it is float32 already."""
    for node in exported.graph.nodes:
        if node.op == "placeholder" and _is_bfloat16(node) and any(_is_bfloat16(user) for user in node.users):
            raise UnsupportedError(f"it computes in bfloat16 with its constant {node.name}", file=file)


def _is_bfloat16(node: torch.fx.Node) -> bool:
    return getattr(node.meta.get("val"), "dtype", None) == torch.bfloat16


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
