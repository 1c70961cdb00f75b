"""`cupola.compile` where not everything is there that compiling needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import sys
sys.modules["{name}"] = None
import cupola
try:
    cupola.compile("smollm2", out=sys.argv[1])
except cupola.UnsupportedError as error:
    print(error)
"""
AFTER_AN_LLM = """
import sys
import cupola
cupola.LLM
assert not {"tvm", "torch"} & set(sys.modules)
try:
    cupola.compile(sys.argv[1], out=sys.argv[2])
except cupola.InputError as error:
    print(error)
llm = cupola.LLM(cupola.compile(sys.argv[3], out=sys.argv[2]))
print(llm.logits([1, 2]).shape)
"""


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_missing_package_is_named_with_the_fix(name: str, tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", HIDE.format(name=name), str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert name in done.stdout and "pip install 'cupola[compiler]'" in done.stdout
    assert not (tmp_path / "out").exists()


def test_compiling_after_the_runtime_was_loaded(tmp_path) -> None:
    import transformers

    from cupola.models import find_family

    family = find_family("llama")
    assert family is not None
    config = transformers.AutoConfig.for_model("llama", **family.tiny)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", AFTER_AN_LLM, str(tmp_path / "missing"), str(tmp_path / "out"), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, last = done.stdout.strip().splitlines()
    assert "no such file" in first and last == f"(2, {config.vocab_size})"
