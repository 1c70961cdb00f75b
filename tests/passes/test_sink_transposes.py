from __future__ import annotations

from tvm.script import relax as R

from cupola.passes.sink_transposes import sink_transposes
from tests.passes.harness import becomes, same_numbers, stays


def test_past_a_slice() -> None:
    @R.function
    def before(x: R.Tensor(("n", 4, 16), "float32")):
        with R.dataflow():
            part = R.strided_slice(R.permute_dims(x, [1, 0, 2]), axes=[2], begin=[0], end=[8])
            out = R.permute_dims(part, [1, 0, 2])
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 4, 16), "float32")):
        with R.dataflow():
            out = R.strided_slice(x, axes=[2], begin=[0], end=[8])
            R.output(out)
        return out

    becomes(sink_transposes(), before, expected)


@R.function
def halves_turned(x: R.Tensor(("n", 4, 16), "float32")):
    with R.dataflow():
        heads = R.permute_dims(x, [1, 0, 2])
        left = R.strided_slice(heads, axes=[2], begin=[0], end=[8])
        right = R.strided_slice(heads, axes=[2], begin=[8], end=[16])
        out = R.permute_dims(R.concat((right, left), axis=2), [1, 0, 2])
        R.output(out)
    return out


def test_past_a_concatenation() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 4, 16), "float32")):
        with R.dataflow():
            left = R.strided_slice(x, axes=[2], begin=[0], end=[8])
            right = R.strided_slice(x, axes=[2], begin=[8], end=[16])
            out = R.concat((right, left), axis=2)
            R.output(out)
        return out

    becomes(sink_transposes(), halves_turned, expected)
    same_numbers(sink_transposes(), halves_turned, (3, 4, 16))


@R.function
def split_heads(x: R.Tensor(("n", 4, 48), "float32")):
    with R.dataflow():
        parts = R.split(R.permute_dims(x, [1, 0, 2]), 3, axis=-1)
        out = R.add(R.permute_dims(parts[0], [1, 0, 2]), R.permute_dims(parts[2], [1, 0, 2]))
        R.output(out)
    return out


def test_past_a_split() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 4, 48), "float32")):
        with R.dataflow():
            parts = R.split(x, 3, axis=2)
            first = parts[0]
            third = parts[2]
            out = R.add(first, third)
            R.output(out)
        return out

    becomes(sink_transposes(), split_heads, expected)
    same_numbers(sink_transposes(), split_heads, (3, 4, 48))


def test_past_a_split_at_indices() -> None:
    @R.function
    def before(x: R.Tensor(("n", 4, 48), "float32")):
        with R.dataflow():
            parts = R.split(R.permute_dims(x, [1, 0, 2]), [8, 16], axis=2)
            out = R.permute_dims(parts[1], [1, 0, 2])
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 4, 48), "float32")):
        with R.dataflow():
            parts = R.split(x, [8, 16], axis=2)
            out = parts[1]
            R.output(out)
        return out

    becomes(sink_transposes(), before, expected)


@R.function
def norms_of_heads(x: R.Tensor(("n", 4, 16), "float32"), weight: R.Tensor((16,), "float32"), bias: R.Tensor((16,), "float32")):
    with R.dataflow():
        first = R.nn.rms_norm(R.permute_dims(x, [1, 0, 2]), weight, axes=[-1], epsilon=1.0)
        second = R.nn.layer_norm(first, weight, bias, axes=[2], epsilon=1.0)
        out = R.permute_dims(second, [1, 0, 2])
        R.output(out)
    return out


def test_past_norms() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 4, 16), "float32"), weight: R.Tensor((16,), "float32"), bias: R.Tensor((16,), "float32")):
        with R.dataflow():
            first = R.nn.rms_norm(x, weight, axes=[-1], epsilon=1.0)
            out = R.nn.layer_norm(first, weight, bias, axes=[2], epsilon=1.0)
            R.output(out)
        return out

    becomes(sink_transposes(), norms_of_heads, expected)
    same_numbers(sink_transposes(), norms_of_heads, (3, 4, 16), (16,), (16,))


def test_a_norm_over_an_axis_that_moved_stays() -> None:
    @R.function
    def before(x: R.Tensor((4, 16, 16), "float32"), weight: R.Tensor((16,), "float32")):
        with R.dataflow():
            out = R.nn.rms_norm(R.permute_dims(x, [0, 2, 1]), weight, axes=[-1], epsilon=1.0)
            R.output(out)
        return out

    stays(sink_transposes(), before)


def test_a_concatenation_of_different_transposes_stays() -> None:
    @R.function
    def before(x: R.Tensor((8, 8, 8), "float32"), y: R.Tensor((8, 8, 8), "float32")):
        with R.dataflow():
            out = R.concat((R.permute_dims(x, [1, 0, 2]), R.permute_dims(y, [0, 2, 1])), axis=0)
            R.output(out)
        return out

    stays(sink_transposes(), before)


def test_a_concatenation_with_a_plain_part_stays() -> None:
    @R.function
    def before(x: R.Tensor((8, 8, 8), "float32"), y: R.Tensor((8, 8, 8), "float32")):
        with R.dataflow():
            out = R.concat((R.permute_dims(x, [1, 0, 2]), y), axis=0)
            R.output(out)
        return out

    stays(sink_transposes(), before)


@R.function
def products_of_channels(x: R.Tensor(("n", 12), "float32")):
    with R.dataflow():
        parts = R.split(R.permute_dims(x, [1, 0]), 2, axis=0)
        product = R.multiply(R.nn.silu(parts[0]), R.multiply(parts[1], R.const(2.0, "float32")))
        out = R.permute_dims(product, [1, 0])
        R.output(out)
    return out


def test_past_elementwise_operations() -> None:
    @R.function
    def expected(x: R.Tensor(("n", 12), "float32")):
        with R.dataflow():
            parts = R.split(x, 2, axis=1)
            left = parts[0]
            right = parts[1]
            out = R.multiply(R.nn.silu(left), R.multiply(right, R.const(2.0, "float32")))
            R.output(out)
        return out

    becomes(sink_transposes(), products_of_channels, expected)
    same_numbers(sink_transposes(), products_of_channels, (3, 12))


def test_operands_that_are_not_turned_alike_stay() -> None:
    @R.function
    def before(x: R.Tensor((4, 4), "float32"), y: R.Tensor((4, 4), "float32")):
        with R.dataflow():
            out = R.add(R.permute_dims(x, [1, 0]), y)
            R.output(out)
        return out

    stays(sink_transposes(), before)


def test_past_a_product_with_a_weight() -> None:
    @R.function
    def before(x: R.Tensor(("n", 4), "float32"), w: R.Tensor((6, 4), "float32")):
        with R.dataflow():
            rows = R.nn.silu(x)
            out = R.permute_dims(R.matmul(w, R.permute_dims(rows, [1, 0])), [1, 0])
            R.output(out)
        return out

    @R.function
    def expected(x: R.Tensor(("n", 4), "float32"), w: R.Tensor((6, 4), "float32")):
        with R.dataflow():
            rows = R.nn.silu(x)
            out = R.matmul(rows, R.permute_dims(w, [1, 0]))
            R.output(out)
        return out

    becomes(sink_transposes(), before, expected)
    same_numbers(sink_transposes(), before, (3, 4), (6, 4))
