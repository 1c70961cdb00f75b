"""A configuration alone: a source that knows its tensors' shapes, and refuses to read them."""

from __future__ import annotations

import json

import pytest

from cupola.compiler.sources import Naming, bind_weights, open_source
from cupola.runtime.errors import SourceError


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "float16"), (None, "bfloat16"), ("float8_e4m3fn", "bfloat16")])
def test_parameters_have_tensors_without_values(tiny_folder, tmp_path, dtype, stored):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "shape.json").write_text(json.dumps(config | {"dtype": dtype}))
    source = open_source(tmp_path / "shape.json")
    assert source.config["hidden_size"] == config["hidden_size"] and source.tokenizer_json is None and source.tensors == {}
    tensor = bind_weights(source, {"a.weight": (4, 8)}, Naming("model"), {})["a.weight"]
    assert (tensor.shape, tensor.dtype, tensor.num_bytes) == ((4, 8), stored, 64)
    with pytest.raises(SourceError, match="has no weights"):
        tensor.load()


def test_other_json_is_refused(tmp_path):
    for text, message in (("[]", "shape.json"), ("{", "shape.json"), ('{"model_type": "abacus"}', "abacus")):
        (tmp_path / "shape.json").write_text(text)
        with pytest.raises(SourceError, match=message):
            open_source(tmp_path / "shape.json")
