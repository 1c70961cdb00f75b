"""Ledgers are read as they were written, and say what got worse."""

from __future__ import annotations

from cupola.targets.ledger import differences, read_compiler, read_ledger, write_ledger


def test_differences_name_the_figures_and_put_the_worse_first():
    same, gone, new, better, worse, mixed = ((name, "avx2") for name in ("same", "gone", "new", "better", "worse", "mixed"))
    before = {same: {"fma": 3}, gone: {"fma": 1}, better: {"spill": 2, "load": 9}, worse: {"fma": 8}, mixed: {"fma": 8, "load": 2}}
    now = {same: {"fma": 3}, new: {"fma": 1}, better: {"load": 9}, worse: {"fma": 8, "spill": 1}, mixed: {"fma": 6, "load": 3}}
    assert differences(before, now) == [
        "worse: worse, avx2: spill 0 → 1",
        "mixed: mixed, avx2: fma 8 → 6, load 2 → 3",
        "gone: gone, avx2: not in the catalogue",
        "new: new, avx2: not in the ledger",
        "better: better, avx2: spill 2 → 0",
    ]


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    lines = {("a 1x2", "avx2"): {"loops": 2, "spill": 0}, ("b", "neon"): {"loops": 1}}
    write_ledger(lines, tmp_path / "ledger", "isa")
    assert read_ledger(tmp_path / "ledger", "isa") == lines
    assert read_ledger(tmp_path / "none") == {} and read_compiler(tmp_path / "none") == read_compiler(tmp_path / "ledger") == ""


def test_a_ledger_names_its_compiler(tmp_path):
    lines = {("a", "sm_80"): {"registers": 40}}
    write_ledger(lines, tmp_path / "ledger", compiler="nvcc 13.0.88")
    assert read_ledger(tmp_path / "ledger") == lines
    assert read_compiler(tmp_path / "ledger") == "nvcc 13.0.88"
