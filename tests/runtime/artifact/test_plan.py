"""Plans: what they say, and that damaged ones are refused by name."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.plan import ABI, Place, Plan, PlanBuffer, PlanCall, PlanExit, PlanKernel, num_bytes
from cupola.runtime.artifact.read import parse_plan, read_plan
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec
from cupola.runtime.errors import ArtifactError

X, LOGITS = TensorSpec("x", "float32", ("n", 8)), TensorSpec("logits", "float32", ("n", 4))
FORWARD = FunctionSpec("forward", (X, LOGITS, TensorSpec("w", "float32", (8, 4)), TensorSpec("starts", "int32", ("b + 1",))), (LOGITS,))
SCALE = PlanKernel("scale", (TensorSpec("a", "float32", ("m", 8)), TensorSpec("out", "float32", ("m", 8))), ("int64",), ("m",))
PROJECT = PlanKernel(
    "project",
    (TensorSpec("a", "float32", ("m", 2, 4)), TensorSpec("w", "float32", (8, 4)), TensorSpec("c", "float32", (4,)), LOGITS),
    (),
    ("m", "n"),
)
PLAN = Plan(
    ABI,
    ("n",),
    ("n * 32 + 40", 7),
    (TensorSpec("constant_0", "float32", (4,)),),
    (PlanBuffer("a", "float32", ("n", 8), 0, 40, 0, 1),),
    (SCALE, PROJECT),
    (
        PlanCall("scale", (Place("input", 0), Place("buffer", 0)), (3,), ("n",)),
        PlanCall("project", (Place("buffer", 0), Place("input", 2), Place("constant", 0), Place("input", 1)), (), ("n", "n")),
    ),
)
FILE = Path("plan.json")


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    assert read_plan(tmp_path / "plan.json", FORWARD) == PLAN
    assert PLAN.to_json().count("\n") < 30  # a line for each thing


def test_an_exit_hands_over_a_row_for_each_token() -> None:
    """Rows for logits are the last one's alone, and all are of one size and dtype."""
    buffers = [
        PLAN.buffers[0],
        *(replace(PLAN.buffers[0], **change) for change in ({"shape": ("r", 8)}, {"shape": ("n", 4)}, {"dtype": "int32"})),
    ]
    forward = replace(FORWARD, inputs=(*FORWARD.inputs, TensorSpec("rows", "int32", ("r",))))
    plan = replace(PLAN, dims=("n", "r"), buffers=tuple(buffers), storages=("n * 32 + r * 32 + 40", 7), calls=(*PLAN.calls, *PLAN.calls))

    def read(*found: int) -> Plan:
        return parse_plan(replace(plan, exits=tuple(PlanExit(i + 1, buffer) for i, buffer in enumerate(found))).to_json(), FILE, forward)

    assert read(0, 1).exits == (PlanExit(1, 0), PlanExit(2, 1)) and read(0, 0, 0).exits
    for wrong, problem in (
        ((0, 1, 0), "exits[1].buffer: is not a row"),
        ((0, 2), "exits[1].buffer: is not a row"),
        ((0, 3), "exits[1].buffer: has another"),
    ):
        with pytest.raises(ArtifactError, match=re.escape(problem)):
            read(*wrong)


def test_storages_follow_each_other_in_the_workspace() -> None:
    assert PLAN.layout({"n": 3}) == ((0, 192), 256)
    assert num_bytes(PLAN.buffers[0], {"n": 3}) == 96
    assert PLAN.tensor(PLAN.calls[1].pointers[0], FORWARD.inputs) == PLAN.buffers[0]
    assert PLAN.tensor(PLAN.calls[0].pointers[0], FORWARD.inputs) == X
    assert PLAN.kernel("project") == PROJECT


def damaged(path: str, value: Any) -> dict[str, Any]:
    """PLAN with another value at a path such as "calls.0.kernel"; "…" removes the field."""
    data: Any = json.loads(PLAN.to_json())
    place, *rest = path.split(".")
    holder = data
    for step in rest:
        holder, place = holder[int(place) if isinstance(holder, list) else place], step
    if value == "…":
        del holder[place]
    else:
        holder[int(place) if isinstance(holder, list) else place] = copy.deepcopy(value)
    return dict(data)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("abi", 2, "abi: is 2, this cupola runs 1"),
        ("abi", "…", "expected the fields abi, dims"),
        ("calls.0.other", 1, "calls[0]: expected the fields kernel, pointers"),
        ("calls.0.numbers", ["n;"], "calls[0].numbers[0]: 'n;': ';' is no number"),
        ("exits", [{"call": 1, "buffer": 1}], "exits[0].buffer: there is no buffer of index 1"),
        ("exits", [{"call": 0, "buffer": 0}], "exits[0].call: is 0 of 2 calls, or not behind the one before"),
        ("exits", [{"call": 2, "buffer": 0}], "exits[0].call: is 2 of 2 calls"),
        ("exits", [{"call": 1, "buffer": 0}, {"call": 1, "buffer": 0}], "exits[1].call: is 1 of 2 calls"),
        ("exits", [{"call": 1}], "exits[0]: expected the fields call, buffer"),
        ("dims", ["n", "n"], "dims: 'n' comes twice"),
        ("dims", ["n", "b"], "dims[1]: 'b' is no dimension of an input of forward"),
        ("dims", ["b + 1"], "dims[0]: 'b + 1' is no name"),
        ("dims", [], "storages[0]: 'n * 32 + 40': 'n' is no known size"),
        ("storages.0", "n * 32 +", "storages[0]: 'n * 32 +': ends too early"),
        ("storages.0", "(n", "storages[0]: '(n': lacks a ')'"),
        ("storages.0", "n n", "'n' stands in the wrong place"),
        ("storages.0", "n // (n - n)", "divides by 0"),
        ("storages.0", "(" * 17 + "n" + ")" * 17, "is nested too deeply"),
        ("storages.0", "n + " * 400 + "n", "is longer than 1000 characters"),
        ("storages.0", "n - 9", "storages[0]: 'n - 9' is negative or too large"),
        ("storages.0", "__import__('os')", "is no number, name or operator"),
        ("storages.0", 1.5, "storages[0]: 1.5 is not what belongs here"),
        ("storages.0", True, "storages[0]: True is not what belongs here"),
        ("storages.0", 2**60, "is negative or too large"),
        ("storages.0", "n * 32", "buffers[0].offset: it ends outside of storage 0"),
        ("constants.0.dtype", "float31", "constants[0].dtype: 'float31' is unknown"),
        ("constants.0.shape", ["n"], "constants[0].shape: 'n': 'n' is no known size"),
        ("constants.0.shape", [4] * 9, "constants[0].shape: has 9 dimensions"),
        ("constants.0.shape", [2**40, 2**40], "constants[0].shape: is too large"),
        ("kernels.1.name", "scale", "kernels: 'scale' comes twice"),
        ("kernels.0.name", "scale(", "kernels[0]: 'scale(' is no name"),
        ("kernels.0.numbers", ["float32"], "kernels[0].numbers[0]: 'float32' is unknown"),
        ("kernels.0.sizes", ["k"], "kernels[0].pointers[0].shape: 'm': 'm' is no known size"),
        ("buffers.0.storage", 2, "buffers[0].storage: there is none of index 2"),
        ("buffers.0.storage", -1, "buffers[0].storage: there is none of index -1"),
        ("buffers.0.storage", 1, "buffers[0].offset: it ends outside of storage 1"),
        ("buffers.0.offset", 41, "buffers[0].offset: it ends outside of storage 0"),
        ("buffers.0.last", 2, "buffers[0].first: it is used from call 0 to 2 of 2"),
        ("buffers.0.dtype", "float64", "buffers[0].dtype: 'float64' is unknown"),
        ("calls.0.kernel", "scalf", "calls[0].kernel: 'scalf' is not among the kernels"),
        ("calls.0.pointers.0.kind", "weight", "calls[0].pointers[0].kind: 'weight' is none of input, constant, buffer"),
        ("calls.0.pointers.0.index", 4, "calls[0].pointers[0].index: there is no input of index 4"),
        ("calls.0.pointers.0.index", -1, "calls[0].pointers[0].index: there is no input of index -1"),
        ("calls.0.pointers.1.index", 1, "calls[0].pointers[1].index: there is no buffer of index 1"),
        ("calls.0.pointers.0.index", 3, "calls[0].pointers[0]: input 3 is not what the kernel takes as 'a'"),
        ("calls.0.pointers.0.index", 1, "calls[0].pointers[0]: input 1 is not what the kernel takes as 'a'"),
        ("calls.0.pointers", [], "calls[0].pointers: there are 0, the kernel takes 2"),
        ("calls.0.numbers", [], "calls[0].numbers: there are 0, the kernel takes 1"),
        ("calls.0.sizes", [], "calls[0].sizes: there are 0, the kernel takes 1"),
        ("calls.0.sizes", ["n + 1"], "calls[0].pointers[0]: input 0 is not what the kernel takes as 'a'"),
        ("calls.0.sizes", ["k"], "calls[0].sizes[0]: 'k': 'k' is no known size"),
    ],
)
def test_a_damaged_plan_is_refused_by_name(path: str, value: object, expected: str) -> None:
    with pytest.raises(ArtifactError) as error:
        parse_plan(json.dumps(damaged(path, value)), FILE, FORWARD)
    assert str(error.value).startswith("plan.json: ") and expected in str(error.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda file: None, "can't be read: No such file or directory"),
        (lambda file: file.mkdir(), "is not a plan"),
        (lambda file: file.write_bytes(b"\xff{}"), "is not UTF-8 text"),
        (lambda file: file.write_text("{"), "is not JSON: Expecting property name"),
        (lambda file: file.write_text('{"abi": 1, "abi": 1}'), "a key comes twice"),
        (lambda file: file.write_text("[" * 100_000), "is not JSON: maximum recursion"),
        (lambda file: file.write_text("[]"), "expected the fields"),
    ],
)
def test_what_is_no_plan_is_refused(make: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    make(tmp_path / "plan.json")
    with pytest.raises(ArtifactError, match=expected):
        read_plan(tmp_path / "plan.json", FORWARD)


@pytest.mark.parametrize(
    ("expression", "value"),
    [(7, 7), ("8", 8), ("n", 5), ("n * 2304", 11520), ("b + 1", 4), ("2 + n * 3", 17), ("(2 + n) * 3", 21), ("n - 1 - 1", 3),
     ("n // 2 * 2", 4), ("((n + 15) // 16) * 16", 16), ("  n*b ", 15), ("size_n", 9), ("n > 4", 1), ("n < b", 0),
     ("(n + 7) // 8 * (n >= 5)", 1), ("n * (n <= 4) + 1", 1), ("2 * b < n + 1", 0)],
)  # fmt: skip
def test_expressions(expression: int | str, value: int) -> None:
    assert evaluate(expression, {"n": 5, "b": 3, "size_n": 9}) == value


@pytest.mark.parametrize(
    "expression",
    ["", "n +", "* n", "-n", "n(3)", "n ** 2", "n / 2", "3n", "n.real", "9" * 19, "0x10", "n, b", ")", "n < b < 3", "n =< 2", "n ="],
)
def test_what_is_no_expression(expression: str) -> None:
    with pytest.raises(ValueError):
        evaluate(expression, {"n": 5})
