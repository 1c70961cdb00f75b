"""`suffix` of /v1/completions: the prompt that the model's tokenizer has tokens for, as the models' own cards write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupola.runtime.errors import RequestError
from cupola.runtime.server.fill_in_the_middle import FORMATS, middle_prompt
from tests.runtime import tiny_artifact
from tests.runtime.server.harness import COMPLETIONS, error_of, run_server, unharmed
from tests.runtime.tokenizers_for_tests import byte_level

CARDS = {  # from the cards of Qwen2.5-Coder, StarCoder2, DeepSeek-Coder, Codestral and Seed-Coder
    "<|fim_prefix|>a{<|fim_suffix|>}b<|fim_middle|>": ("<|fim_middle|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_pad|>"),
    "<fim_prefix>a{<fim_suffix>}b<fim_middle>": ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    "<｜fim▁begin｜>a{<｜fim▁hole｜>}b<｜fim▁end｜>": ("<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"),
    "[SUFFIX]}b[PREFIX]a{": ("[INST]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    "<[fim-suffix]>}b<[fim-prefix]>a{<[fim-middle]>": ("<[fim-prefix]>", "<[fim-middle]>", "<[fim-suffix]>"),
}


@pytest.mark.parametrize("prompt", CARDS)
def test_the_prompt_is_as_the_card_says(prompt: str):
    assert middle_prompt(CARDS[prompt], "a{", "}b") == prompt


def test_texts_may_look_like_places():
    assert middle_prompt(FORMATS[0].tokens, "{suffix}", "{prefix}") == "<|fim_prefix|>{suffix}<|fim_suffix|>{prefix}<|fim_middle|>"


def test_a_tokenizer_without_them_is_told():
    with pytest.raises(RequestError, match="suffix: is not supported"):
        middle_prompt(("<|fim_prefix|>", "<s>"), "a", "b")


def test_the_model_sees_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["[SUFFIX]", "[PREFIX]"])
    monkeypatch.setattr(tiny_artifact, "byte_level", lambda: tokenizer)
    with run_server(tiny_artifact.make_artifact(tmp_path / "artifact", context=256).path, tmp_path) as server, unharmed(server):
        body = {"prompt": "ab", "suffix": "cd", "max_tokens": 1, "return_token_ids": True}
        [choice] = server.complete(**body)["choices"]
        texts = [tokenizer.id_to_token(token_id) for token_id in choice["prompt_token_ids"]]
        assert texts == ["[SUFFIX]", "c", "d", "[PREFIX]", "a", "b"]
        assert error_of(server.post({**body, "prompt": [1, 2]}, COMPLETIONS))["param"] == "prompt"
        assert error_of(server.post({**body, "echo": True}, COMPLETIONS))["param"] == "echo"
