"""The tutorials run, and show what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import Compiled

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def run(name: str, *arguments: str) -> str:
    """The output of a tutorial that ends well."""
    done = subprocess.run([sys.executable, str(TUTORIALS / name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_answer_is_paris(smollm2: Compiled) -> None:
    out = run("01_first_answer.py", str(smollm2.path))
    assert "Answer: The capital of Japan is Tokyo." in out
    assert "out; it ended because of: stop" in out
    assert "' Paris'" in out.partition("After 'The capital of France is'")[2].splitlines()[1]  # the most likely token comes first
    assert "5 tokens × 49152 words" in out


def test_looking_inside_finds_every_stage() -> None:
    stages = [stage.partition(" ---\n")[2] for stage in run("02_look_inside.py").split("\n--- ")[1:]]
    torch, relax, passes, kernels, tir, assembly, artifact = stages
    assert "cupola.attention" in torch and "linear" in torch
    assert "R.matmul(" in relax and "R.rsqrt(" in relax
    assert "R.take(" in passes and "cupola.paged_attention(" in passes and "R.matmul(" not in passes
    assert "call_tir(cls.linear_" in kernels
    assert "T.parallel(" in tir and "weight[" in tir
    assert any(instruction in assembly for instruction in ("fmadd", "fmla", "mulps"))
    assert "lib.so" in artifact and "q_proj.weight+k_proj.weight+v_proj.weight" in artifact


def test_the_written_pass_changes_the_model_and_not_its_numbers() -> None:
    out = run("03_write_a_pass.py")
    assert "The pass turns Before into Expected" in out
    assert "model.layers.1.input_layernorm.weight" in out
    errors = [float(line.rpartition(": ")[2]) for line in out.splitlines() if line.startswith("Largest difference")]
    assert len(errors) == 2 and max(errors) < 1e-4


def test_a_served_model_answers_every_kind_of_request(smollm2: Compiled) -> None:
    out = run("04_serve.py", str(smollm2.path))
    assert "Answer: The capital of Japan is Tokyo." in out
    assert "Models: ['smollm2']" in out and "Streamed: " in out
    assert "In JSON: {'city': '" in out
    assert re.search(r'The model calls: get_weather \{"city": ?"(Paris|Rome)"\}', out)
    assert re.search(r"Then it says: \S", out)
    assert "cupola:generation_tokens_total" in out
    assert out.endswith("The server has ended with code 0\n")


def test_a_new_target_gives_the_tokens_that_the_cpu_gives() -> None:
    out = run("05_new_target.py")
    right, wrong = (float(line.split()[word]) for line, word in zip(out.splitlines()[:2], (5, 7), strict=True))
    assert right <= 1 < wrong
    assert "The same tokens: True" in out
    assert "Norms are computed by norm_by_four_warps" in out


def test_every_tutorial_is_tested_and_listed() -> None:
    readme, tests = (TUTORIALS.parent / "README.md").read_text(encoding="utf-8"), Path(__file__).read_text(encoding="utf-8")
    for file in TUTORIALS.glob("*.py"):
        assert f'"{file.name}"' in tests and f"tutorials/{file.name}" in readme
