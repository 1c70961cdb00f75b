"""The parameters of an attention kernel that do not depend on how K/V lie in memory, and the call of such a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import relax

from cupola.runtime.artifact.tensors import E4M3
from cupola.targets.ops import PagedAttention


@dataclass(frozen=True)
class AttentionShape:
    """The numbers of a `PagedAttention`.

    Attributes:
        dtypes: of the matrices that q, k and v are in; two of them where there is no v.
        columns: of the same.
        starts: the first of them in each.
        rotary_dim: leading dimensions of a head that are rotated; 0: none.
    """

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    block_size: int
    kv_dtype: str
    out_dtype: str
    dtypes: tuple[str, ...]
    columns: tuple[int, ...]
    starts: tuple[int, ...]
    rotary_dim: int
    angle_dtype: str
    interleaved: bool
    scale: float
    window: int
    softcap: float
    has_slopes: bool
    has_sinks: bool

    @property
    def is_latent(self) -> bool:
        """True if the first numbers of a token's key are its value."""
        return len(self.columns) == 2

    @property
    def in_e4m3(self) -> bool:
        """True if pools hold bits of E4M3, of which a value beyond 448 becomes the nearest one; NaN is not kept."""
        return self.kv_dtype == E4M3

    @property
    def pool_dtype(self) -> str:
        """The type of the tensors that hold K and V."""
        return "uint8" if self.in_e4m3 else self.kv_dtype

    @property
    def label(self) -> str:
        """The kernel's name."""
        return f"{'latent' if self.is_latent else 'paged'}_attention_{self.num_heads}x{self.num_kv_heads}x{self.key_dim}_{self.kv_dtype}"


def attention_shape(
    op: PagedAttention, out: relax.TensorType, num_kv_heads: int, key_dim: int, value_dim: int, block_size: int
) -> AttentionShape:
    """The shape of a call whose result has the type `out`; the layout of the pools tells the other sizes.

    Without v, all heads' values lie in keys, whatever `value_dim` is given.
    """
    matrices = [x for x in (op.q, op.k, op.v) if x is not None]
    if op.v is None:
        value_dim = int(out.shape[1]) * key_dim // int(op.q.ty.shape[1])
    return AttentionShape(
        num_heads=int(out.shape[1]) // value_dim,
        num_kv_heads=num_kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        block_size=block_size,
        kv_dtype=op.kv_dtype,
        out_dtype=str(out.dtype),
        dtypes=tuple(str(x.ty.dtype) for x in matrices),
        columns=tuple(int(x.ty.shape[1]) for x in matrices),
        starts=(op.q_start, op.k_start, op.v_start)[: len(matrices)],
        rotary_dim=0 if op.cos is None else int(op.cos.ty.shape[1]),
        angle_dtype="float32" if op.cos is None else str(op.cos.ty.dtype),
        interleaved=bool(op.interleaved),
        scale=op.scale,
        window=op.window,
        softcap=op.softcap,
        has_slopes=op.slopes is not None,
        has_sinks=op.sinks is not None,
    )


def call_attention(
    kernel: tvm.tirx.PrimFunc,
    label: str,
    op: PagedAttention,
    out: relax.TensorType,
    builder: relax.BlockBuilder,
    workspace: Sequence[tvm.ir.Expr | int] | None = None,
) -> relax.Expr:
    """The call of a kernel that takes the operation's tensors in their order, those that there are, perhaps a workspace of float32, and the
    layer."""
    step = (op.slots, op.query_starts, op.context_lens, op.block_tables)
    scratch = None
    if workspace is not None:
        scratch = builder.emit(relax.op.builtin.alloc_tensor(relax.ShapeExpr(list(workspace)), "float32", 0))
    tensors = (op.q, op.k, op.v, op.cos, op.sin, *op.pools, *step, op.slopes, op.sinks, scratch)
    layer = relax.prim_value(tvm.tirx.IntImm("int64", op.layer))  # an argument, so that all layers share one kernel
    given = [*(tensor for tensor in tensors if tensor is not None), layer]
    return relax.op.call_tir(builder.add_func(kernel, label), relax.Tuple(given), out_ty=out)
