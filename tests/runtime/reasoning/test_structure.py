"""Grammars of answers that think first, in every format: they compile, take what a model writes, and hold a budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cupola.runtime.reasoning.formats import FORMATS, ReasoningFormat
from cupola.runtime.reasoning.structure import after_thinking
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from tests.runtime.tokenizers_for_tests import byte_level, save

CALLS = {
    "type": "triggered_tags",
    "triggers": ["<tool_call>"],
    "tags": [{"type": "tag", "begin": "<tool_call>", "content": {"type": "json_schema", "json_schema": {}}, "end": "</tool_call>"}],
}
BODIES = [  # what the answer must be, an answer, and whether it could be anything else
    (StructuredOutputs(json={"type": "integer"}), "7"),
    (StructuredOutputs(regex="[0-9]Q"), "7Q"),
    (StructuredOutputs(choice=["Q"]), "Q"),
    (StructuredOutputs(grammar='root ::= "Z"'), "Z"),
    (StructuredOutputs(structural_tag={"type": "structural_tag", "format": CALLS}), "hi <tool_call>{}</tool_call>"),
    (None, "anything"),
]
BUDGET, STOP = 3, 262
# XGrammar's library is for processes that import no torch: one is started for all cases. A text is allowed if each token's mask says so.
SCRIPT = """
import json, sys
from pathlib import Path
from cupola.runtime.structured import xgrammar_library as xgrammar
vocabulary = xgrammar.Vocabulary(Path(sys.argv[1]), 264, [262], with_special_tokens=True)
def is_allowed(grammar, token_ids):
    matcher = grammar.matcher()
    for token_id in token_ids:
        masks, _ = grammar.fill([matcher])
        if not int(masks[0][token_id // 32]) >> token_id % 32 & 1:
            return False
        xgrammar.accept(matcher, [token_id])
    return True
for line in sys.stdin:
    kind, text, texts = json.loads(line)
    grammar = xgrammar.Grammar(vocabulary, kind, text)
    print(json.dumps([is_allowed(grammar, token_ids) for token_ids in texts]), flush=True)
"""


def cases(format: ReasoningFormat) -> list[tuple[str, StructuredOutputs, list[str], list[str]]]:
    """A name, a grammar, texts that it must allow and texts that it must not."""
    found = []
    for thinks in (True, False):
        for budget in (None, BUDGET):
            for body, text in BODIES:
                grammar = after_thinking(body, format, thinks=thinks, budget=budget)
                begin = "" if thinks else format.begins[0]
                if grammar is not None:
                    allowed = [f"{begin}ab{end}\n{text}" for end in format.ends] + ([] if thinks else [text])
                    refused = [f"{begin}abcdefgh"] if budget else []
                    found.append((f"thinks={thinks} budget={budget} {body}", grammar, allowed, refused))
    return found


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_thinking_comes_before_what_is_held_to_a_form(format: ReasoningFormat, tmp_path: Path):
    tokenizer, all_cases = byte_level(), cases(format)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    jobs = [
        (*grammar.source(), [*([*encode(text), STOP] for text in allowed), *map(encode, refused)])
        for _, grammar, allowed, refused in all_cases
    ]
    command = [sys.executable, "-c", SCRIPT, str(save(tokenizer, tmp_path))]
    done = subprocess.run(command, input="\n".join(map(json.dumps, jobs)), capture_output=True, text=True, timeout=120, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(all_cases), done.stderr[-500:]
    for (name, _, allowed, refused), answer in zip(all_cases, answers, strict=True):
        assert answer == [True] * len(allowed) + [False] * len(refused), name
