"""Prompts of four kinds of answers, which differ in how much of them stands in the prompt: code that is edited, quotes, JSON, free writing.

Code and documents are this package's own files, which lie wherever it runs; records are made from a table.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOM = Path(__file__).parents[1]
EDITS = (
    ("engine/swap_pool.py", "take", "rename the parameter `num_blocks` to `count`"),
    ("text/stop_strings.py", "__init__", "add a docstring"),
    ("engine/block_pool.py", "reserve", "rename the variable `copies` to `moves`"),
    ("engine/samplers/dry.py", "common_suffixes", "rename the variable `backwards` to `reversed_ids`"),
)
QUOTES = (
    ("server/serve.py", "serve", "max_queue, request_timeout and stall_timeout"),
    ("engine/samplers/params.py", "ChainParams", "typical_p, mirostat and top_n_sigma"),
    ("engine/engine.py", "EngineConfig", "attention_sinks, seed and max_num_batched_tokens"),
    ("artifact/inputs.py", "StepTensor", "shape, each_group and optional"),
)
NAMES = ("Anna Holt", "Bao Nguyen", "Clara Reyes", "David Okafor", "Elif Kaya", "Farid Haddad", "Grete Lund", "Hiro Tanaka")
GOODS = ("lamps", "oak chairs", "woollen blankets", "copper kettles", "garden shears", "writing desks")
TOWNS = ("Port Elham", "Lindau", "Santa Rosa", "Kumasi", "Aarhus")
STORIES = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain to a child why the sky is blue and sunsets are red.",
    "Describe a morning at a market by the sea.",
    "Give advice to somebody who wants to learn the piano at forty.",
)


def answer_kinds() -> dict[str, list[str]]:
    """The prompts of each kind."""
    edits = [f"In this Python code, {wish}. Answer with the whole code.\n\n```python\n{_source(*at)}\n```" for *at, wish in EDITS]
    quotes = [f"Quote word for word what this text says of {names}, a line for each.\n\n{_docstring(*at)}" for *at, names in QUOTES]
    return {"edits of code": edits, "quotes": quotes, "JSON": [_extraction(i) for i in range(4)], "free writing": list(STORIES)}


def _extraction(number: int) -> str:
    """A request to make JSON of some sentences."""
    lines = []
    for i in range(number * 5, number * 5 + 5):
        name, goods, town = NAMES[i % len(NAMES)], GOODS[i % len(GOODS)], TOWNS[(i * 3 + number) % len(TOWNS)]
        lines.append(f"On {i % 28 + 1} May {name} of {town} ordered {2 + i * 7 % 11} {goods} for {20 + i * 37 % 400} euros.")
    wish = 'Extract the orders as a JSON list of objects with the fields "day", "customer", "town", "quantity", "article" and "price".'
    return wish + "\n\n" + "\n".join(lines)


def _node(file: str, name: str) -> tuple[str, ast.FunctionDef | ast.ClassDef]:
    text = (ROOM / file).read_text(encoding="utf-8")
    return text, next(n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)


def _source(file: str, name: str) -> str:
    text, node = _node(file, name)
    return ast.get_source_segment(text, node) or ""


def _docstring(file: str, name: str) -> str:
    return ast.get_docstring(_node(file, name)[1]) or ""
