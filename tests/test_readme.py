"""Statements of the README are true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cupola
from cupola.compiler.options import KV_DTYPES, QUANTS
from cupola.compiler.sources.gguf_architectures import ARCHITECTURES
from cupola.models import FAMILIES, llama
from cupola.runtime.artifact.manifest import CHAT_TEMPLATE, GENERATION_CONFIG, LIBRARY, MANIFEST, TOKENIZER
from tests.conftest import Compiled

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# Puts a compiled artifact in the place of `cupola.compile`'s, whose arguments must fit all the same.
GIVEN_ARTIFACT = """
import inspect, sys
import cupola
signature = inspect.signature(cupola.compile)
def given(*args, **kwargs):
    signature.bind(*args, **kwargs)
    return cupola.Artifact.open(sys.argv[1], verify=False)
cupola.compile = given
"""


def test_the_python_runs(smollm2: Compiled) -> None:
    code, structured = CODE
    command = [sys.executable, "-c", GIVEN_ARTIFACT + code + structured, str(smollm2.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Paris" in lines[0] and lines[-3] == "The capital of Japan is Tokyo." and lines[-2].endswith("(3, 49152)")
    assert json.loads(lines[-1]).keys() == {"name", "age"}


def test_the_python_has_ten_lines() -> None:
    statements = [line for line in CODE[0].splitlines() if line and not line.startswith("import ")]
    assert len(statements) <= 10


def test_the_families_are_the_verified_ones() -> None:
    listed = re.search(r"Verified families,.*?: (.*?)\. ", README, re.DOTALL)
    assert listed and re.findall(r"`([\w-]+)`", listed[1]) == [family.model_type for family in FAMILIES]


def test_the_dtypes_are_the_compilers() -> None:
    weights, kv = (next(line for line in README.splitlines() if line.startswith(f"| {name} |")) for name in ("Weights", "K/V"))
    assert set(re.findall(r"`(\w[\w-]*)`", weights)) == {name for name in QUANTS if "-g" not in name}
    assert tuple(re.findall(r"`(\w+)`", kv)) == KV_DTYPES


@pytest.mark.by_turns
@pytest.mark.parametrize("quant", QUANTS[1:4])
def test_every_dtype_works(quant: str, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **llama.FAMILY.tiny)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "model")
    logits = cupola.LLM(cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant=quant)).logits(list(range(40)))
    with torch.no_grad():
        expected = model(torch.arange(40)[None]).logits[0].numpy()
    bound = {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2}[quant]  # a few roundings; the largest logit is 0.6
    assert abs(logits - expected).max() < bound


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    places = ["#" + heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)]
    assert links and [link for link in links if link not in places and not (ROOT / link).is_file()] == []


def test_the_picture_shows_every_room_and_every_file_of_an_artifact() -> None:
    picture = re.sub(r"<[^>]+>|\s+", "", (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8"))
    for name in ("compiler/", "models/", "passes/", "targets/", "runtime/", MANIFEST, LIBRARY, TOKENIZER, CHAT_TEMPLATE, GENERATION_CONFIG):
        assert name in picture


def test_the_number_of_gguf_architectures_is_the_tables() -> None:
    assert f"of [{len(ARCHITECTURES)} architectures](docs/gguf.md)" in README
