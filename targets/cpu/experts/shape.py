"""The shape of a mixture's layer, its packed weights, and its last step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tvm import relax

from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument
from cupola.targets.cpu.experts.routing import Group
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.epilogue import Epilogue
from cupola.targets.cpu.linear.packing import PANEL, as_f32, is_static, num_panels, shape_of
from cupola.targets.cpu.linear.shape import LayerShape
from cupola.targets.ops import ExpertLinear, GatedExpertLinear

Experts: TypeAlias = ExpertLinear | GatedExpertLinear


@dataclass(frozen=True)
class Mixture:
    """The numbers of a mixture's layer.

    Attributes:
        layer: of each of its experts.
        choices: experts of a token.
        is_shared: whether a token brings all its experts the same row.
        dtypes: of x, of the index and of the result.
    """

    layer: LayerShape
    num_experts: int
    choices: int
    is_shared: bool
    dtypes: tuple[str, str, str]

    @property
    def num_panels(self) -> int:
        """Panels of all experts."""
        return self.num_experts * self.layer.num_panels

    @property
    def divisor(self) -> int:
        """Pairs of a token and an expert that share a row."""
        return self.choices if self.is_shared else 1

    @property
    def label(self) -> str:
        """The beginning of its kernels' names."""
        return f"experts_{self.num_experts}_{self.layer.label}"

    def rows(self, num_tokens: Value) -> tuple[Buffer, Buffer]:
        """The first arguments of a kernel: x and the index."""
        x_shape = (num_tokens, self.layer.depth) if self.is_shared else (num_tokens, self.choices, self.layer.depth)
        x = argument("x", x_shape, self.dtypes[0])
        return x, argument("index", (num_tokens, self.choices), self.dtypes[1])

    def epilogue(self, simd: Simd, num_tokens: Value) -> Epilogue:
        """The layer's last step, with the last arguments: bias and result."""
        layer = self.layer
        bias = argument("bias", (self.num_panels * PANEL,), "float32") if layer.has_bias else None
        out = argument("out", (num_tokens, self.choices, layer.num_outputs), self.dtypes[2])
        return Epilogue(simd, layer.num_outputs, layer.gated, layer.activation, bias, None, out)

    def source(self, group: Group, row: Value) -> tuple[Value, ...]:
        """Where row `row` of a group stands in x."""
        token, choice = group.pair(row) // self.choices, group.pair(row) % self.choices
        return (token,) if self.is_shared else (token, choice)


@dataclass(frozen=True)
class GroupEpilogue(Epilogue):
    """The last step of a group's rows, which stand apart from each other in the result."""

    group: Group

    @staticmethod
    def of(whole: Epilogue, group: Group) -> GroupEpilogue:
        """The part of a mixture's."""
        return GroupEpilogue(**vars(whole), group=group)

    def place(self, row: Value) -> tuple[Value, ...]:
        """The token, and which of its experts it is."""
        pair, choices = self.group.pair(row), self.group.routing.choices
        return pair // choices, pair % choices

    def finish(self, panel: Value, row: Value, r: Value, products: Buffer) -> None:
        """As for a layer; `panel` counts those of all experts."""
        super().finish(panel - self.group.first_panel, row, r, products)

    def prefetch(self, panel: Value, row: Value) -> None:
        """As for a layer."""
        super().prefetch(panel - self.group.first_panel, row)

    def _biased(self, products: Buffer, panel: Value, r: Value, start: int, lanes: int) -> Value:
        return super()._biased(products, panel + self.group.first_panel, r, start, lanes)


def match_experts(call: relax.Call) -> Experts | None:
    """The operation of a call, if its weight and its choices are of known size."""
    op = ExpertLinear.match(call) or GatedExpertLinear.match(call)
    fits = op is not None and is_static(op.weight) and op.x.ty.ndim in (2, 3) and hasattr(op.index.ty.shape[1], "value")
    return op if fits else None


def mixture_of(isa: ISA, op: Experts, out: relax.TensorType) -> Mixture:
    """The shape of an operation whose result has the type `out`."""
    gated = isinstance(op, GatedExpertLinear)
    layer = LayerShape(
        isa=isa,
        num_outputs=int(out.shape[2]),
        depth=int(op.x.ty.shape[-1]),
        gated=gated,
        has_bias=op.bias is not None,
        has_residual=False,
        activation=op.activation if isinstance(op, GatedExpertLinear) else "",
        in_place=False,
    )
    dtypes = (str(op.x.ty.dtype), str(op.index.ty.dtype), str(out.dtype))
    return Mixture(layer, op.num_experts, int(op.index.ty.shape[1]), op.x.ty.ndim == 2, dtypes)


def pack_expert_panels(weight: relax.Expr, num_experts: int, gated: bool, builder: relax.BlockBuilder) -> relax.Expr:
    """[E·N, K] -> [E · panels, K, 32], each expert's columns as those of a layer: gates and ups 16 by 16, zeros past the last column."""
    rows, depth = shape_of(weight)
    halves = 2 if gated else 1
    columns, width = rows // (num_experts * halves), PANEL // halves
    panels = num_panels(columns * halves)
    apart = builder.emit(relax.op.reshape(weight, (num_experts, halves, columns, depth)))
    if missing := panels * width - columns:
        apart = builder.emit(relax.op.nn.pad(apart, [0, 0, 0, 0, 0, missing, 0, 0], "constant", 0.0))
    apart = builder.emit(relax.op.reshape(apart, (num_experts, halves, panels, width, depth)))
    turned = builder.emit(relax.op.permute_dims(apart, (0, 2, 4, 1, 3)))
    return builder.emit(relax.op.reshape(turned, (num_experts * panels, depth, PANEL)))


def packed_bias(op: Experts, builder: relax.BlockBuilder) -> list[relax.Expr]:
    """The bias as panels have it, f32 [E · panels · 32]; nothing for a layer without one."""
    if op.bias is None:
        return []
    column = builder.emit(relax.op.reshape(as_f32(op.bias, builder), (shape_of(op.bias)[0], 1)))
    packed = pack_expert_panels(column, op.num_experts, isinstance(op, GatedExpertLinear), builder)
    return [builder.emit(relax.op.reshape(packed, (shape_of(packed)[0] * PANEL,)))]
