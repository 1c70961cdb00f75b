"""Loads of more than four elements at once, for languages whose vectors have four: words of 32 bits are loaded, and taken apart."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer
from tvm.tirx.script import builder as T

MAX_LANES = 4
_WORD = 32  # bits


def load_words() -> tvm.transform.Pass:
    """Registers that are loaded from memory more than MAX_LANES elements at a time hold words.

    Before:  raw = T.alloc_local((8,), "float16"); raw[0:8] = weight[i, j * 8 : j * 8 + 8]; … raw[3] …
    After:   raw = T.alloc_local((4,), "uint32"); raw[0:4] = words[i, j * 4 : j * 4 + 4]; … the upper half of raw[1] as float16 …
    """

    @tirx.transform.prim_func_pass(opt_level=0)
    def rewrite(func: tirx.PrimFunc, mod: tvm.IRModule, context: object) -> tirx.PrimFunc:
        return _Words().rewritten(func)

    return rewrite


class _Words:
    """Buffers in words: registers that hold them instead, and views of tensors."""

    def __init__(self) -> None:
        self._registers: dict[Any, tirx.Buffer] = {}
        self._views: dict[Any, tirx.Buffer] = {}

    def rewritten(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        tvm_ffi.structural_walk(func.body, (tirx.BufferStore, self._find))
        if not self._registers:
            return func
        callbacks = [(tirx.AllocBuffer, self._allocation), (tirx.BufferStore, self._store), (tvm.ir.TensorLoad, self._load)]
        body = tvm_ffi.structural_map(func.body, callbacks, order="pre")
        declared = [tirx.DeclBuffer(view, data=tirx.buffer_data(buffer)) for buffer, view in self._views.items()]
        return func.with_body(tirx.SeqStmt([*declared, body]))

    def _find(self, store: tirx.BufferStore) -> None:
        lanes, buffer = store.value.ty.dtype.lanes, store.buffer
        if lanes > MAX_LANES and isinstance(store.value, tvm.ir.TensorLoad):
            bits, (size,) = buffer.ty.dtype.dtype.bits, buffer.ty.shape
            self._registers[buffer] = tirx.decl_buffer((int(size) * bits // _WORD,), "uint32", f"{buffer.name}_words", scope="local")

    def _allocation(self, allocation: tirx.AllocBuffer) -> tirx.Stmt:
        words = self._registers.get(allocation.buffer)
        return allocation if words is None else tirx.AllocBuffer(words)

    def _store(self, store: tirx.BufferStore) -> tirx.Stmt:
        words = self._registers.get(store.buffer)
        if words is None:
            return store
        source = store.value.source
        per_word = _WORD // source.ty.dtype.dtype.bits
        if source not in self._views:
            *rows, width = source.ty.shape
            self._views[source] = tirx.decl_buffer((*rows, width // per_word), "uint32", f"{source.name}_words")
        index = [_in_words(i, per_word) for i in store.value.indices]
        return tirx.BufferStore(words, self._views[source][tuple(index)], [_in_words(i, per_word) for i in store.indices])

    def _load(self, load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        words = self._registers.get(load.source)
        if words is None:
            return load
        dtype, (index,) = load.source.ty.dtype, load.indices
        per_word, bits = _WORD // dtype.dtype.bits, dtype.dtype.bits
        part = words[int(index) // per_word] >> T.uint32(int(index) % per_word * bits)
        return T.reinterpret(str(dtype), T.cast(part, f"uint{bits}"))


def _in_words(index: Any, per_word: int) -> Any:
    """An index of elements as one of words; the last axis has a ramp."""
    if not isinstance(index, tirx.Ramp):
        return index
    base = Analyzer().simplify(index.base // per_word)
    return tirx.Ramp(base, index.stride, int(index.lanes) // per_word)
