"""How a weight lies in memory for the CPU kernels: panels of 32 output columns, the same on every instruction set.

Written as Relax ops on the weight, so that packing is lifted out of the model and runs once, at compile time. An
embedding and a vocabulary projection that share a weight write the same expression and so share the packed tensor.
"""

from __future__ import annotations

from tvm import relax

PANEL = 32
AHEAD = 16384  # bytes of weights that are asked for before those that are multiplied: what the hardware foresees ends with a page


def num_panels(num_columns: int) -> int:
    """Panels that hold `num_columns` output columns."""
    return -(-num_columns // PANEL)


def pack_panels(weight: relax.Expr, builder: relax.BlockBuilder) -> relax.Expr:
    """[N, K] -> [panels, K, 32], zeros past column N."""
    n, k = shape_of(weight)
    columns = builder.emit(relax.op.reshape(_pad(weight, n, 0, 2, builder), (num_panels(n), PANEL, k)))
    return builder.emit(relax.op.permute_dims(columns, (0, 2, 1)))


def pack_gated_panels(weight: relax.Expr, builder: relax.BlockBuilder) -> relax.Expr:
    """[2N, K], gates above ups -> [panels, K, 32]: in each panel 16 gates, then the 16 ups that they multiply."""
    n, k = shape_of(weight)[0] // 2, shape_of(weight)[1]
    halves = _pad(builder.emit(relax.op.reshape(weight, (2, n, k))), 2 * n, 1, 3, builder)
    columns = builder.emit(relax.op.reshape(halves, (2, num_panels(2 * n), PANEL // 2, k)))
    panels = builder.emit(relax.op.permute_dims(columns, (1, 3, 0, 2)))
    return builder.emit(relax.op.reshape(panels, (num_panels(2 * n), k, PANEL)))


def pack_columns(vector: relax.Expr, builder: relax.BlockBuilder) -> relax.Expr:
    """[N] -> f32 [panels · 32]."""
    n = shape_of(vector)[0]
    return _pad(as_f32(vector, builder), n, 0, 1, builder)


def pack_gated_columns(vector: relax.Expr, builder: relax.BlockBuilder) -> relax.Expr:
    """[2N] -> f32 [panels · 32], in the order of `pack_gated_panels`."""
    n = shape_of(vector)[0] // 2
    halves = _pad(builder.emit(relax.op.reshape(as_f32(vector, builder), (2, n))), 2 * n, 1, 2, builder)
    columns = builder.emit(relax.op.reshape(halves, (2, num_panels(2 * n), PANEL // 2)))
    panels = builder.emit(relax.op.permute_dims(columns, (1, 0, 2)))
    return builder.emit(relax.op.reshape(panels, (num_panels(2 * n) * PANEL,)))


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The sizes of a tensor whose shape is known."""
    return tuple(int(size) for size in expr.ty.shape)


def is_static(expr: relax.Expr) -> bool:
    """True if every size of a tensor is known at compile time."""
    shape = expr.ty.shape
    return shape is not None and all(hasattr(size, "value") for size in shape)


def as_f32(expr: relax.Expr, builder: relax.BlockBuilder) -> relax.Expr:
    """The same values in float32."""
    return expr if expr.ty.dtype == "float32" else builder.emit(relax.op.astype(expr, "float32"))


def _pad(expr: relax.Expr, num_columns: int, axis: int, rank: int, builder: relax.BlockBuilder) -> relax.Expr:
    """Zeros at the end of `axis`, which with what stands before it counts columns, up to whole panels."""
    missing = num_panels(num_columns) * PANEL - num_columns
    if missing == 0:
        return expr
    if axis == 1:
        missing //= 2
    widths = [0] * (2 * rank)
    widths[2 * axis + 1] = missing
    return builder.emit(relax.op.nn.pad(expr, widths, "constant", 0.0))
