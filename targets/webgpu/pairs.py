"""Tensors of bfloat16, a type that WGSL has not, as words of 32 bits with two numbers each: kernels may read them, or copy words."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.sym import Analyzer
from tvm.tirx.script import builder as T

from cupola.runtime.errors import UnsupportedError
from cupola.targets.emit import argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, cached, keep, strided

DTYPE = "bfloat16"
SUFFIX = "_pairs"  # of such tensors' names


def lower_take(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`R.take(weight[V, K], tokens[n], axis=0)` of bfloat16 and an even K: a thread copies two numbers at once. Token ids are trusted."""
    if call.op.name != "relax.take" or call.attrs.axis is None or int(call.attrs.axis) != 0 or str(call.ty.dtype) != DTYPE:
        return None
    weight, tokens = call.args
    sizes = list(weight.ty.shape)
    if tokens.ty.ndim != 1 or len(sizes) != 2 or not all(isinstance(size, tirx.IntImm) and size.value % 2 == 0 for size in sizes[1:]):
        return None
    rows, width = map(int, sizes)
    called = builder.add_func(_take(rows, width, str(tokens.ty.dtype)), f"embedding_{rows}x{width}_{DTYPE}")
    return relax.op.call_tir(called, relax.Tuple([weight, tokens]), out_ty=call.ty)


@cached
def _take(rows: int, width: int, token_dtype: str) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n = T.int64()
        weight, tokens, out = (
            argument("weight", (rows, width), DTYPE),
            argument("tokens", (n,), token_dtype),
            argument("out", (n, width), DTYPE),
        )
        source, copied = (T.decl_buffer((size, width // 2), "uint32", data=tensor.data) for size, tensor in ((rows, weight), (n, out)))
        with blocks(n, threads=WARP) as (i, lane):
            token = keep(T.cast(tokens[i], "int64"))
            with strided(width // 2, lane, WARP) as k:
                T.buffer_store(copied, source[token, k], [i, k])

    return prim_func(body)


@tirx.transform.prim_func_pass(opt_level=0)
def read_pairs(kernel: tirx.PrimFunc, mod: tvm.IRModule, context: object) -> tirx.PrimFunc:
    """Reads words in place of bfloat16, which TVM has written as 16 bits that are moved up.

    Before:  x: T.handle("bfloat16"); T.reinterpret("float32", T.Cast("uint32", T.reinterpret("uint16", x[i])) << 16)
    After:   x: T.handle("uint32"); T.reinterpret("float32", (x[i // 2] >> i % 2 * 16 & 0xffff) << 16)

    Raises:
        UnsupportedError: the kernel writes a number of bfloat16, whose word another thread may write.
    """
    return _Pairs().rewritten(kernel)


class _Pairs:
    def __init__(self) -> None:
        self._words: dict[Any, tirx.Buffer] = {}
        self._known = Analyzer()

    def rewritten(self, kernel: tirx.PrimFunc) -> tirx.PrimFunc:
        params = {param: _pointer(param) for param in kernel.params if _points_to(param, DTYPE)}
        if not params:
            return kernel
        tvm_ffi.structural_walk(kernel.body, (tirx.DeclBuffer, self._find))
        tvm_ffi.structural_walk(kernel.body, (tirx.Bind, lambda bind: self._known.bind(bind.var, bind.value)))
        callbacks = [(tirx.DeclBuffer, self._declaration), (tirx.BufferStore, self._store), (tirx.Cast, self._cast)]
        body = tvm_ffi.structural_map(kernel.body, callbacks, order="pre")
        body = tvm_ffi.structural_map(body, (tirx.Var, lambda var: params.get(var, var)))
        return tirx.PrimFunc([params.get(param, param) for param in kernel.params], body, kernel.ret_type, kernel.attrs)

    def _find(self, declared: tirx.DeclBuffer) -> None:
        buffer = declared.buffer
        if str(buffer.ty.dtype) == DTYPE:
            (size,) = buffer.ty.shape
            self._words[buffer] = tirx.decl_buffer(((size + 1) // 2,), "uint32", f"{buffer.name}{SUFFIX}")

    def _declaration(self, declared: tirx.DeclBuffer) -> tirx.Stmt:
        words = self._words.get(declared.buffer)
        return declared if words is None else tirx.DeclBuffer(words, data=declared.data)

    def _store(self, store: tirx.BufferStore) -> tirx.Stmt:
        if store.buffer in self._words:
            problem = f"a kernel writes {store.buffer.name} in bfloat16, which WGSL has no type for"
            raise UnsupportedError(problem, field="target webgpu", fix="take --quant f32, f16, w8a16 or w4a16")
        load = _vector(store.value)
        if load is None or load.source not in self._words:
            return store
        (into,), (source,) = store.indices, load.indices
        stores = [
            tirx.BufferStore(store.buffer, self._number(load.source, source.base, j), [into.base + j]) for j in range(int(source.lanes))
        ]
        return tirx.SeqStmt(stores)

    def _number(self, tensor: tirx.Buffer, base: Any, j: int) -> tvm.ir.Expr:
        """Number j from `base` on as float32. Neighbours in a word are read once where it is known that they are such."""
        words, zero = self._words[tensor], tirx.IntImm(str(base.ty.dtype), 0)
        if not self._known.can_prove_equal(base % 2, zero):
            return T.reinterpret("float32", self._half(tensor, base + j) << T.uint32(16))
        word = words[self._known.simplify(base // 2) + j // 2]
        return T.reinterpret("float32", word & T.uint32(0xFFFF0000) if j % 2 else word << T.uint32(16))

    def _half(self, tensor: tirx.Buffer, index: Any) -> tvm.ir.Expr:
        return (self._words[tensor][index // 2] >> T.cast(index % 2 * 16, "uint32")) & T.uint32(0xFFFF)

    def _cast(self, cast: tirx.Cast) -> tvm.ir.Expr:
        bits = cast.value
        if str(cast.ty.dtype) != "uint32" or not _is_call(bits, "reinterpret") or not isinstance(bits.args[0], tvm.ir.TensorLoad):
            return cast
        load = bits.args[0]
        return self._half(load.source, load.indices[0]) if load.source in self._words else cast


def _vector(value: tvm.ir.Expr) -> Any:
    """The load whose numbers `value` has as float32, if it is a vector of them."""
    if value.ty.dtype.lanes == 1 or not _is_call(value, "reinterpret"):
        return None
    moved = value.args[0]
    cast = getattr(moved, "a", None)  # of a shift
    bits = cast.value if isinstance(cast, tirx.Cast) else None
    return bits.args[0] if bits is not None and _is_call(bits, "reinterpret") and isinstance(bits.args[0], tvm.ir.TensorLoad) else None


def _is_call(value: Any, name: str) -> bool:
    return isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == f"tirx.{name}"


def _points_to(param: tirx.Var, dtype: str) -> bool:
    return isinstance(param.ty, tvm.ir.PointerType) and str(param.ty.element_type.dtype) == dtype


def _pointer(param: tirx.Var) -> tirx.Var:
    """The same to words."""
    return tirx.Var(param.name.removesuffix("_ptr") + SUFFIX, tvm.ir.PointerType(tvm.ir.PrimType("uint32"), "global"))
