"""docs/gguf_quality.md, out of the figures of every file that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "gguf_quality.md"
_HEAD = """# GGUF files, with their tensors as they are

`--quant keep-a8` and `--quant keep-a16` store each tensor of a GGUF file in its own format, bit for bit. keep-a16 multiplies the values as
they are; keep-a8 rounds activations to 8 bits in groups of 32 and multiplies integers, as llama.cpp does, which rounds them in groups of 32
or 256. On CPUs with matrix units for bfloat16, keep-a8 multiplies more than 16 rows in that.

`make gguf-quality FILE=…` made these tables. Perplexity is of the second halves of windows of 512 tokens of Python's documentation, as
`cupola eval` has it; K and V are in float16. float32 is transformers on the values that the gguf package makes of the file's blocks: what
the file says. Its configuration is the one that cupola reads: by transformers' own reader Gemma 3 has a perplexity of 25.5. Ratios are of
perplexities, ± their standard error. The divergence is KL(float32 || engine), in nats a token; the same top is how often both find the same
token the likeliest. Then each continues ten prompts greedily by 64 tokens: counted are those before the first that is not llama.cpp's.

llama.cpp is further from float32 than keep-a8, on Gemma 3 most, because it rounds what Q4_K and Q6_K weights multiply in groups of 256.
In float32 with inputs of all matrices rounded in groups of 32 the divergence is 0.0026; with those of the down projections in groups of
256, 0.0061 (one window). Its GELU, a table in float16, makes 0.0000004 of it; attention without flash, K and V in float32 change nothing.
"""
_ENGINES = ("engine", "perplexity", "beside llama.cpp's", "beside float32's", "divergence", "same top", "greedy tokens as llama.cpp's")
_DIFFERENCES = ("engine", "prompt", "token", "cupola", "llama.cpp", "float32")


def write_report(known: dict[str, Any]) -> str:
    """Writes the page, and returns it."""
    page = "\n".join([_HEAD, *(line for file, found in sorted(known.items()) for line in _section(file, found))])
    PAGE.write_text(page, encoding="utf-8")
    return page


def _section(file: str, found: dict[str, Any]) -> list[str]:
    lines = [f"## {file}", "", f"{found['windows']} windows, {found['tokens']} tokens scored."]
    lines += [f"{scheme}: {note}." for scheme, notes in found["notes"].items() for note in notes]
    lines += ["" if found["same_tokenization"] else "llama.cpp cuts the text into other tokens; all were given cupola's.", ""]
    lines += _table(_ENGINES, [_cells(engine) for engine in found["engines"]])
    rows = [[engine["engine"], *_margins(each)] for engine in found["engines"] for each in engine["differences"]]
    what = "Where answers first differ: by how many logits each prefers its own token to the other's, and float32 cupola's to llama.cpp's."
    return [*lines, "", *([what, "", *_table(_DIFFERENCES, rows), ""] if rows else [])]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cells(engine: dict[str, Any]) -> list[str]:
    to_peer, to_exact = (f"{ratio:.5f} ± {error:.5f}" for ratio, error in (engine["to_llama_cpp"], engine["to_float32"]))
    distance = [to_exact, f"{engine['divergence']:.6f}", f"{100 * engine['same_top']:.2f} %"]
    same = engine["same_tokens"]
    return [
        engine["engine"], f"{engine['perplexity']:.4f}", "" if engine["engine"] == "llama.cpp" else to_peer,
        *(["", "", ""] if engine["engine"] == "float32" else distance), "" if same is None else f"{same[0]} of {same[1]}",
    ]  # fmt: skip


def _margins(each: dict[str, Any]) -> list[str]:
    return [str(each["prompt"] + 1), str(each["place"] + 1), f"{each['engine']:.3f}", f"{each['llama_cpp']:.3f}", f"{each['float32']:+.3f}"]
