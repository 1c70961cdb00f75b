"""Makes a tensor over planned memory once, and names it again wherever the same one is wanted.

Before:  a = R.memory.alloc_tensor(storage, 0, R.shape([n, 576]), R.dtype("float32"), 0)
         cls.rms_norm(x, weight, a)
         b = R.memory.alloc_tensor(storage, 0, R.shape([n, 576]), R.dtype("float32"), 0)
         cls.rms_norm(y, weight, b)
After:   a = R.memory.alloc_tensor(storage, 0, R.shape([n, 576]), R.dtype("float32"), 0)
         cls.rms_norm(x, weight, a)
         cls.rms_norm(y, weight, a)

A step of a model with 30 layers makes the same few tensors 30 times over; each costs the virtual machine three instructions (the shape,
the tensor, the end of its life). The memory planner gave both the same bytes because nobody reads the first any more, so this changes no
result. Reshapes, which are views of such memory, are shared likewise.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm_ffi import StructuralKey

from cupola.passes.rewrite import pass_of

_VIEWS = tuple(map(tvm.ir.Op.get, ("relax.memory.alloc_tensor", "relax.reshape")))


def share_tensors() -> tvm.transform.Pass:
    """The pass; for functions without branches whose memory is planned."""
    return pass_of("share_tensors", _run)


def _run(mod: IRModule) -> IRModule:
    sharing = _Sharing(mod)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            sharing.made.clear()
            sharing.builder_.update_func(var, sharing.visit_expr(func))
    return sharing.builder_.get()


@mutator
class _Sharing(PyExprMutator):
    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self.made: dict[StructuralKey, relax.Var] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = self.visit_expr(binding.value)
        if isinstance(value, relax.Call) and value.op in _VIEWS:
            key = StructuralKey(value)
            value = self.made[key] if key in self.made else self.made.setdefault(key, self.builder_.emit(value))
        if isinstance(value, relax.Var):  # a second name, which would keep the next reshape of it apart
            self.set_var_remap(binding.var, value)
        else:
            self.builder_.emit_normalized(relax.VarBinding(self.visit_var_def(binding.var), value))
