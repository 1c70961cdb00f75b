"""The table of a step expands to tensors by group, and every line has a place in what reads it."""

from cupola.runtime.artifact.inputs import MAX_STEPS, STEP_INPUTS, STEP_OUTPUTS, input_line, input_specs, output_specs


def test_inputs_come_once_and_once_a_group():
    names = [spec.name for spec in input_specs(2)]
    once = ["tokens", "positions", "query_starts", "context_lens", "logit_rows"]
    assert names == [*once, "slots.0", "block_tables.0", "slots.1", "block_tables.1"]
    assert {spec.name: spec.shape for spec in input_specs(2)}["block_tables.1"] == ("b", "max_blocks_1")


def test_a_line_is_found_by_the_name_of_an_input():
    for name in ("tokens", "slots.0", "slots.17", "adapter_ids", "state_slots.1", "parents"):
        line = input_line(name)
        assert line is not None and line.name == name.split(".")[0]
    for name in ("slots", "tokens.0", "temperature", "weight.slots"):
        assert input_line(name) is None


def test_outputs_follow_the_table_whatever_order_is_asked():
    found = output_specs(["argmax", "logits"], 130)
    assert [(spec.name, spec.shape) for spec in found] == [("logits", ("r", 130)), ("argmax", (MAX_STEPS, "r"))]
    assert output_specs(["maxima"], 130)[0].shape == ("r", 3)


def test_names_are_unique_and_logits_are_the_only_output_that_is_always_there():
    lines = [line.name for line in (*STEP_INPUTS, *STEP_OUTPUTS)]
    assert len(lines) == len(set(lines))
    assert [line.name for line in STEP_OUTPUTS if not line.optional] == ["logits"]
