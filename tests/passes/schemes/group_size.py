"""The tests that every group size is held to, from its names to logits: those of one are a class that says which."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tvm import relax, tirx

from cupola.compiler.kernel_check import compile_case, worst_error
from cupola.compiler.options import QUANTS
from cupola.compiler.weights import encoding_notes
from cupola.passes.encoders import encode, encode_weighted
from cupola.passes.quantize_weights import quantize_weights
from cupola.passes.schemes import SCHEMES
from cupola.targets import ops
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.cpu.measure.ledger import own_cases
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor
from cupola.targets.registry import get_target
from cupola.targets.testing.case import ODD
from cupola.targets.testing.catalogue import EmbeddingKernel, LinearKernel
from tests.compiler.encodings import File, packed, stored
from tests.e2e.stored_model import distances
from tests.passes.harness import verified

KINDS = ("w8a8", "w8a16", "w4a8", "w4a16")
BLOCKS = {"Q4_0": "4 bits", "Q4_1": "4 bits with mins", "Q4_K": "4 bits with mins", "Q8_0": "8 bits", "Q6_K": "8 bits", "F16": "4 bits"}
by_isa = pytest.mark.parametrize("isa", [isa for isa in ISAS if runs_here(isa) and not isa.alike], ids=lambda isa: isa.name)


def normal(*shape: int) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(shape)).astype("float32")


class GroupSizeTests:
    size: ClassVar[int]

    def encoded(self, weight: np.ndarray, bits: int, *, mins: bool = False, weighted: bool = False) -> QuantizedTensor:
        form = WeightFormat(bits, self.size, zero_point="mins" if mins else "none")
        return QuantizedTensor(form, *(encode_weighted if weighted else encode)(form.name, weight))

    def steps(self, tensor: QuantizedTensor) -> np.ndarray:
        return np.repeat(tensor.scales.astype("float64"), self.size, axis=1)

    def test_schemes(self) -> None:
        own = {name: scheme for name, scheme in SCHEMES.items() if name.endswith(f"-g{self.size}")}
        assert list(own) == [f"{kind}-g{self.size}" for kind in KINDS] and set(own) < set(QUANTS)
        for kind, scheme in zip(KINDS, own.values(), strict=True):
            assert scheme.group_size == self.size
            assert scheme.linear.pick([]).format == WeightFormat(int(kind[1]), self.size) and f"groups of {self.size}" in scheme.description
            assert scheme.embedding.pick([]).format == WeightFormat(8, self.size)
            assert scheme.quantize_x == (32 if kind.endswith("a8") else 0) and scheme.kv_dtype == SCHEMES[kind].kv_dtype

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_pass_writes_the_format(self, kind: str) -> None:
        width = 2 * self.size + 8
        builder, n = relax.BlockBuilder(), tirx.Var("n", "int64")
        shapes = {"x": (n, width), "w": (48, width), "head": (100, 48)}
        x, weight, head = (relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in shapes.items())
        with builder.function("forward", [x, weight, head], {"num_input": 1}):
            with builder.dataflow():
                hidden = builder.emit(ops.Linear(x, weight, None, None, "relu").emit(relax.TensorType((n, 48), "float32")))
                logits = ops.Linear(hidden, head, None, None, "").emit(relax.TensorType((n, 100), "float32"))
                result = builder.emit_output(logits)
            builder.emit_func_output(result)
        mod = verified(quantize_weights(SCHEMES[f"{kind}-g{self.size}"]), builder.get())
        bindings = [binding for block in mod["forward"].body.blocks for binding in block.bindings]
        layers = [op for binding in bindings if (op := ops.Linear.match(binding.value)) is not None]
        assert [layer.format for layer in layers] == [f"w{kind[1]}g{self.size}", f"w8g{self.size}"]
        assert [layer.quantize_x for layer in layers] == [32 if kind.endswith("a8") else 0] * 2
        assert layers[0].scales is not None and layers[0].mins is None
        assert list(map(int, layers[0].weight.ty.shape)) == [48, 3 * self.size] and list(map(int, layers[0].scales.ty.shape)) == [48, 3]

    @pytest.mark.parametrize("weighted", [False, True])
    def test_scales_of_4_bits_come_close_to_an_exhaustive_search(self, weighted: bool) -> None:
        weight = normal(8, 4 * self.size)
        groups = weight.reshape(-1, self.size).astype("float64")
        largest = np.take_along_axis(groups, abs(groups).argmax(1)[:, None], 1)[:, 0]
        importance = groups**2 + (groups**2).mean(1, keepdims=True) if weighted else np.ones_like(groups)
        best = np.full(len(groups), np.inf)
        for divisor in [*np.linspace(-12, -4, 400), *np.linspace(4, 12, 400)]:
            scales = (largest / divisor)[:, None]
            best = np.minimum(best, (importance * (scales * np.clip(np.rint(groups / scales), -8, 7) - groups) ** 2).sum(1))
        ours = self.encoded(weight, 4, weighted=weighted).values().astype("float64").reshape(-1, self.size)
        assert (importance * (ours - groups) ** 2).sum() < 1.02 * best.sum()

    def test_8_bits_are_off_by_half_a_step_at_most(self) -> None:
        weight = normal(16, 5 * self.size)
        tensor = self.encoded(weight, 8)
        assert (abs(tensor.values() - weight.astype("float64")) <= 0.51 * self.steps(tensor)).all()

    def test_4_bits_with_mins_lose_less_than_between_extremes(self) -> None:
        weight = normal(64, 5 * self.size).astype("float64")
        groups = weight.reshape(-1, self.size)
        lowest, steps = groups.min(1, keepdims=True), np.ptp(groups, 1, keepdims=True) / 15
        plain = ((lowest + steps * np.rint((groups - lowest) / steps) - groups) ** 2).sum(1)
        ours = self.encoded(weight.astype("float32"), 4, mins=True).values().astype("float64").reshape(-1, self.size)
        errors = ((ours - groups) ** 2).sum(1)
        assert (errors <= 1.05 * plain).all() and errors.sum() < 0.9 * plain.sum()  # theirs has no float16

    def test_a_row_that_fills_no_group_is_padded_with_zeros(self) -> None:
        weight = normal(3, self.size + 18)
        tensor = self.encoded(weight, 4)
        assert tensor.codes.shape == (3, 2 * self.size) and tensor.scales.shape == (3, 2)
        np.testing.assert_array_equal(tensor.values()[:, self.size + 18 :], 0)

    @pytest.mark.parametrize("kind", BLOCKS)
    def test_blocks_of_32_are_quantized_again_and_counted(self, kind: str) -> None:
        """As finely as they came, or finer."""
        if kind in ("Q4_K", "Q6_K"):  # gguf's own package doesn't write them
            picked = SCHEMES[f"w4a16-g{self.size}"].linear.pick([kind])
            assert picked.name == f"{BLOCKS[kind]} in groups of {self.size}"
            return
        file = File({"w": kind, "e": "F32"}, (48, 3 * self.size))
        weights = packed(file, [["w"], ["e"]], f"w4a16-g{self.size}")
        result, expected = stored(weights, "w", group_size=self.size).values().astype("float64"), file.values["w"].astype("float64")
        assert ((result - expected) ** 2).sum() < (1e-4 if BLOCKS[kind] == "8 bits" else 0.03) * (expected**2).sum()
        where = f"in groups of {self.size}"
        changes = sorted([(kind, f"{BLOCKS[kind]} {where}"), ("F32", f"8 bits {where}")])
        assert encoding_notes(weights) == ["of the weights, " + ", ".join(f"1 is quantized from {old} to {new}" for old, new in changes)]

    def test_rows_that_leave_much_of_a_group_empty_are_noted(self) -> None:
        width = self.size + 32
        weights = packed(File({"w": "F32"}, (48, width)), [["w"]], f"w8a16-g{self.size}")
        assert f"rows of {width} values take up {2 * self.size}, in whole groups; smaller groups would fit better" in encoding_notes(
            weights
        )

    @pytest.mark.by_turns
    @by_isa
    @pytest.mark.parametrize("quantize_x", [32, 0])
    @pytest.mark.parametrize("format", ["w4g{}", "w4g{}m", "w8g{}"])
    def test_linear_kernels(self, format: str, quantize_x: int, isa) -> None:
        kernel = LinearKernel(format.format(self.size), norm=True, residual=True, quantize_x=quantize_x)
        case = next((case for case, own in own_cases(kernel, ODD[0]) if own == isa), None)
        if case is None:
            pytest.skip("another instruction set has the same kernel")
        run = compile_case(case, get_target(f"cpu:{isa.name}"))
        assert worst_error(case, run) <= 1
        if case.batch_invariant:
            arrays = case.draw(np.random.default_rng(0), 40)
            alone = [run(arrays | {name: arrays[name][row : row + 1] for name in ("x", "residual")}) for row in (0, 7, 39)]
            np.testing.assert_array_equal(np.concatenate(alone), run(arrays)[[0, 7, 39]])

    @pytest.mark.by_turns
    @pytest.mark.parametrize("format", ["w4g{}", "w4g{}m", "w8g{}"])
    def test_embedding_kernels(self, format: str) -> None:
        target = get_target("cpu")
        case = EmbeddingKernel(format.format(self.size))(ODD[0], target)
        assert worst_error(case, compile_case(case, target)) <= 1

    @pytest.mark.by_turns
    @pytest.mark.parametrize("kind", KINDS)
    def test_logits_are_those_of_the_stored_weights(self, kind: str, tmp_path: Path) -> None:
        """Widths that fill no group."""
        off = distances(f"{kind}-g{self.size}", tmp_path, hidden_size=self.size + 16, intermediate_size=2 * self.size + 8)
        assert np.median(off) < 1e-6 and off.max() < 1e-2
