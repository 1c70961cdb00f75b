"""Kernels as plain C functions, which a library calls without a runtime of TVM's.

A kernel takes the addresses of its tensors' data, then its whole numbers, then its symbolic sizes as int64, each in the order of its
parameters, and gives 0 or an error's number. TVM's own interface (MakePackedAPI) takes tensors apart, and checks them, at every call;
here the compiler does it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvm
from tvm import IRModule, tirx
from tvm.ir import transform

from cupola.runtime.artifact.plan import PlanKernel
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets.native.sizes import size_of

if TYPE_CHECKING:
    from cupola.targets.base import Target

SYMBOL = "cupola_code_"  # how the symbols of kernels begin: a kernel called exp must not stand in for the C library's
_CPU = 1  # DLPack's number


def compile_kernels(mod: IRModule, target: Target) -> tvm.runtime.Module:
    """The kernels of `mod` as machine code, by symbols that begin with SYMBOL. The target's lowering ends in `plain_interface`."""
    kernels = {gv.name_hint: f.without_attr("global_symbol") for gv, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    with target.tvm, transform.PassContext(opt_level=3):
        return tirx.build(IRModule(kernels), target.tvm, pipeline=target.lowering)


def plain_interface() -> transform.Pass:
    """Gives kernels their C interface and their symbols; where TVM's list of passes has MakePackedAPI.

    Before:  def kernel(x: T.Buffer((n, 576)), layer: T.int64): …
    After:   def kernel(x: T.handle, layer: T.int64, n: T.int64) -> T.int32: …; return 0
    """
    return transform.Sequential([_take_pointers, tirx.transform.BF16StorageLegalize(), _give_symbols])


def describe_kernel(name: str, kernel: tirx.PrimFunc) -> PlanKernel:
    """The parameters of a kernel, in the order in which `plain_interface` has them."""
    tensors, numbers = [p for p in kernel.params if is_tensor(p)], [p for p in kernel.params if not is_tensor(p)]
    names = size_names(kernel)
    pointers = tuple(TensorSpec(p.name, str(p.ty.dtype), tuple(size_of(size, names) for size in p.ty.shape)) for p in tensors)
    return PlanKernel(name, pointers, tuple(str(p.ty.dtype) for p in numbers), tuple(names.values()))


def size_names(kernel: tirx.PrimFunc) -> dict[tirx.Var, str]:
    """The names of a kernel's symbolic sizes outside of it, in order; it need not name them itself, nor differently."""
    return {size: f"{size.name or 'size'}_{i}" for i, size in enumerate(symbolic_sizes(kernel))}


def is_tensor(param: tirx.Var) -> bool:
    """True if a kernel's parameter is a tensor, and no number."""
    return isinstance(param.ty, tirx.BufferType)


def symbolic_sizes(kernel: tirx.PrimFunc) -> list[tirx.Var]:
    """The dimensions of a kernel's tensors that are known only at run time, in the order in which they come."""
    sizes = [size for param in kernel.params if is_tensor(param) for size in param.ty.shape]
    return list(dict.fromkeys(size for size in sizes if isinstance(size, tirx.Var)))


@tirx.transform.prim_func_pass(opt_level=0)
def _take_pointers(func: tirx.PrimFunc, mod: IRModule, context: Any) -> tirx.PrimFunc:
    pointers, numbers, declared = [], [], []
    for param in func.params:
        if is_tensor(param):
            pointers.append(tirx.Var(param.name, tirx.buffer_data_pointer_type(param)))
            declared.append(tirx.DeclBuffer(param, data=pointers[-1]))
        else:
            numbers.append(param)
    body = func.body
    for key, value in (("device_id", 0), ("device_type", _CPU)):  # whose scratch memory kernels ask for
        body = tirx.AttrStmt(tvm.ir.StringImm("default"), key, tirx.IntImm("int32", value), body)
    body = tirx.SeqStmt([*(tirx.Bind(*pair) for pair in _layout(func).items()), *declared, body, tirx.Return(tirx.IntImm("int32", 0))])
    params = [*pointers, *numbers, *symbolic_sizes(func)]
    return tirx.PrimFunc(params, body, tvm.ir.PrimType("int32"), func.attrs).without_attr("tirx.is_entry_func")


def _layout(kernel: tirx.PrimFunc) -> dict[tirx.Var, tirx.Expr]:
    """The offsets and strides that TVM's own operations leave open: tensors begin at their address, and are contiguous."""
    layout: dict[tirx.Var, tirx.Expr] = {}
    for tensor in filter(is_tensor, kernel.params):
        open_strides = reversed(list(zip(tensor.ty.strides, tensor.ty.shape, strict=False)))
        size: Any = tirx.IntImm("int64", 1)
        for stride, extent in open_strides:
            layout |= {stride: size} if isinstance(stride, tirx.Var) else {}
            size = size * extent
        if isinstance(tensor.ty.elem_offset, tirx.Var):
            layout[tensor.ty.elem_offset] = tirx.IntImm(str(tensor.ty.elem_offset.ty.dtype), 0)
    return layout


@tvm.transform.module_pass(opt_level=0)
def _give_symbols(mod: IRModule, context: Any) -> IRModule:
    named = {gv: f.with_attr("global_symbol", SYMBOL + gv.name_hint) for gv, f in mod.functions_items()}
    return IRModule(named, attrs=mod.attrs)
