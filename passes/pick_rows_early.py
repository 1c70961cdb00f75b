"""Moves the choice of the rows that want logits up to where tokens last meet: what stands between runs on those rows alone.

Before:  lv = R.add(h, R.matmul(attended, wo))             # h and attended [n, 64]
         lv1 = R.add(lv, R.nn.silu(R.matmul(R.nn.rms_norm(lv, norm), w)))
         lv2 = R.take(lv1, logit_rows, axis=0)             # [r, 64]
After:   lv = R.take(h, logit_rows, axis=0);  lv1 = R.take(attended, logit_rows, axis=0)
         lv2 = R.add(lv, R.matmul(lv1, wo))                # [r, 64]
         lv3 = R.add(lv2, R.nn.silu(R.matmul(R.nn.rms_norm(lv2, norm), w)))

A prompt wants logits for its last token: the last layer's output projection and MLP, or its router and experts, then run for one row. A
value that anyone reads whole is computed whole, and rows are picked from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import ELEMENTWISE, count_uses, name_of, pass_of, shape_of, tidy
from cupola.targets.ops import op_name


def pick_rows_early() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("pick_rows_early", _run)


def _run(mod: IRModule) -> IRModule:
    picking = _Picking(mod)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            picking.find(func)
            picking.builder_.update_func(var, picking.visit_expr(func))
    return tidy(picking.builder_.get())


@mutator
class _Picking(PyExprMutator):
    """`rows_of` holds the values of which only some rows are read, and which; `picked`, values in those rows alone."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self.values: dict[relax.Var, relax.Expr] = {}
        self.rows_of: dict[relax.Var, relax.Var] = {}
        self.picked: dict[tuple[relax.Var, relax.Var], relax.Var] = {}

    def find(self, func: relax.Function) -> None:
        """Goes from the last binding to the first, so that a value's readers are known before it is."""
        self.values = {binding.var: binding.value for block in func.body.blocks for binding in block.bindings}
        self.rows_of, self.picked = {}, {}
        uses, reads = count_uses(func), Counter[tuple[relax.Var, relax.Var]]()
        for var, value in reversed(self.values.items()):
            choice = _is_choice(value)
            rows = value.args[1] if choice else self.rows_of.get(var)
            for x in [value.args[0]] if choice else self._operands(value) if rows is not None else []:
                reads[x, rows] += 1
                if reads[x, rows] == uses[x]:
                    self.rows_of[x] = rows

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        rows, value = self.rows_of.get(binding.var), binding.value
        of_whole = isinstance(value, relax.TupleGetItem) and (value.tuple_value, rows) not in self.picked  # another field is read whole
        if rows is None or of_whole or not self._operands(value):
            super().visit_var_binding_(binding)
        else:
            self.picked[binding.var, rows] = self.builder_.emit(self._on_rows(value, rows))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        return self._pick(*call.args) if _is_choice(call) else super().visit_call_(call)

    def _pick(self, x: relax.Var, rows: relax.Var) -> relax.Var:
        if (x, rows) not in self.picked:
            self.picked[x, rows] = self.builder_.emit(relax.op.take(self.visit_expr(x), rows, axis=0, mode="clip"))
        return self.picked[x, rows]

    def _on_rows(self, value: relax.Expr, rows: relax.Var) -> relax.Expr:
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self._pick(value.tuple_value, rows), value.index)
        places, count = _operands(value), rows.ty.shape[0]
        args = [self._pick(arg, rows) if i in places else self.visit_expr(arg) for i, arg in enumerate(_arguments(value))]
        if op_name(value) is not None:
            return relax.op.call_dps_packed(value.args[0], relax.Tuple(args), out_ty=_of_rows(value.ty, count))
        if name_of(value) == "reshape":
            return relax.op.reshape(args[0], _of_rows(value.ty, count).shape)
        return relax.Call(value.op, args, value.attrs, value.ty_args)

    def _operands(self, value: relax.Expr) -> list[relax.Var]:
        """The values whose rows make the same rows of `value`; none if other rows may join in."""
        if isinstance(value, relax.TupleGetItem):
            return [value.tuple_value] if _operands(self.values.get(value.tuple_value)) else []
        return [_arguments(value)[i] for i in _operands(value)]


def _of_rows(type_: relax.TensorType, count: tirx.Expr) -> relax.TensorType:
    """The type of so many rows."""
    return relax.TensorType([count, *list(type_.shape)[1:]], type_.dtype)


def _is_choice(value: relax.Expr) -> bool:
    """True if `value` takes rows that the caller names from as many as there are tokens; tables of weights have a known size."""
    if not isinstance(value, relax.Call) or name_of(value) != "take" or value.attrs.axis is None or value.attrs.mode != "clip":
        return False
    x, rows = value.args
    is_input = isinstance(rows, relax.Var) and not isinstance(rows, relax.DataflowVar) and len(rows.ty.shape) == 1
    return is_input and isinstance(x, relax.Var) and int(value.attrs.axis) == 0 and isinstance(x.ty.shape[0], tirx.Var)


def _operands(value: relax.Expr | None) -> list[int]:
    """The places of the arguments whose rows make the same rows of the result."""
    return _OPERANDS[name_of(value)](value) if isinstance(value, relax.Call) and name_of(value) in _OPERANDS else []


def _elementwise(call: relax.Call) -> list[int]:
    """Arguments with as many rows as the result, where all others are the same for every row."""
    tensors = [i for i, arg in enumerate(call.args) if isinstance(arg.ty, relax.TensorType) and _rank(arg) == _rank(call)]
    whole = [i for i in tensors if tvm_ffi.structural_equal(call.args[i].ty.shape[0], call.ty.shape[0])]
    return whole if all(i in whole or shape_of(call.args[i])[0] == 1 for i in tensors) else []


def _matmul(call: relax.Call) -> list[int]:
    left, right = map(_rank, call.args)
    return [0] if left > 1 and right == 2 else []


def _norm(call: relax.Call) -> list[int]:
    return [] if 0 in (int(axis) % _rank(call) for axis in call.attrs.axes) else [0]


def _along_axis(call: relax.Call) -> list[int]:
    return [] if int(call.attrs.axis) % _rank(call.args[0]) == 0 else [0]


def _along_axes(call: relax.Call) -> list[int]:
    """Axes of the argument; all of them where none are named."""
    axes = call.attrs.axis
    return [] if axes is None or 0 in (int(axis) % _rank(call.args[0]) for axis in axes) else [0]


def _new_axes(call: relax.Call) -> list[int]:
    return [] if 0 in (int(axis) % _rank(call) for axis in call.attrs.axis) else [0]


def _slices(call: relax.Call) -> list[int]:
    """Axes are an argument here."""
    axes = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else []
    return [0] if axes and all(int(axis.value) % _rank(call) for axis in axes) else []


def _gathered(call: relax.Call) -> list[int]:
    """Elements of a row by an index for the same row."""
    table, index = call.args
    same = tvm_ffi.structural_equal(table.ty.shape[0], index.ty.shape[0])
    return [0, 1] if same and int(call.attrs.axis) % _rank(table) else []


def _reshaped(call: relax.Call) -> list[int]:
    """Rows that stay rows."""
    x = call.args[0]
    inner = [*list(x.ty.shape)[1:], *list(call.ty.shape)[1:]]
    is_kept = tvm_ffi.structural_equal(x.ty.shape[0], call.ty.shape[0]) and all(isinstance(size, tirx.IntImm) for size in inner)
    return [0] if is_kept and _rank(call) > 1 else []


def _first(call: relax.Call) -> list[int]:
    return [0]


def _experts(call: relax.Call) -> list[int]:
    """x and the index."""
    return [0, 1]


def _arguments(call: relax.Call) -> Sequence[relax.Expr]:
    """The operands of a call; a cupola operation has them in a tuple, behind its name."""
    return call.args if op_name(call) is None else call.args[1].fields


def _rank(tensor: relax.Expr) -> int:
    return len(tensor.ty.shape)


_OPERANDS: dict[str, Callable[[relax.Call], list[int]]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "matmul": _matmul,
    "nn.rms_norm": _norm,
    "nn.layer_norm": _norm,
    "split": _along_axis,
    "nn.softmax": _along_axis,
    "gather_elements": _gathered,
    "sum": _along_axes,
    "max": _along_axes,
    "squeeze": _along_axes,
    "expand_dims": _new_axes,
    "strided_slice": _slices,
    "reshape": _reshaped,
    "cupola.top_k": _first,
    "cupola.expert_linear": _experts,
}
