"""`LLM` takes arguments as vLLM's does: prompts as dictionaries, priorities, bars, beams."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cupola.runtime.engine.beam_search import BeamSearchParams
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import OptionError, RequestError
from cupola.runtime.llm import LLM
from tests.runtime.tiny_artifact import CONTEXT, VOCAB, follow_of, make_artifact, reference_logits

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("vllm") / "artifact").path


@pytest.fixture
def llm(path: Path):
    llm = LLM(path)
    yield llm
    llm.engine.check_idle()


def test_prompts_as_dictionaries(llm):
    ids = llm.tokenize("hé")
    forms = ["hé", ids, {"prompt": "hé"}, {"prompt_token_ids": ids}, {"prompt": "hé", "prompt_token_ids": ids, "multi_modal_data": None}]
    expected = llm.generate("hé", GREEDY)[0].outputs
    assert [output.outputs for output in llm.generate(forms, GREEDY)] == [expected] * 5
    assert llm.generate({"prompt": "hé"}, GREEDY)[0].outputs == expected
    for wrong in ({}, {"text": "a"}, {"prompt": 5}, {"prompt": ["a"]}, {"prompt_token_ids": "a"}, {"prompt": "a", "multi_modal_data": {}}):
        for prompts in (wrong, ["a", wrong]):
            with pytest.raises(RequestError, match="prompts"):
                llm.generate(prompts, GREEDY)


def test_priorities(path: Path):
    llm = LLM(path, max_num_seqs=1)
    outputs = llm.generate([[1, 2], [3, 4], [5, 6]], GREEDY, priority=[3, 1, 2])
    order = np.argsort([output.metrics.first_scheduled_time for output in outputs])
    assert order.tolist() == [1, 2, 0]
    assert len(llm.generate(["a", "b"], GREEDY, priority=-1)) == 2
    for wrong in ([1], [1, 2, 3], ["a", "b"], [True, 1]):
        with pytest.raises(RequestError, match="priority"):
            llm.generate(["a", "b"], GREEDY, priority=wrong)


def test_a_bar(llm, capsys):
    llm.generate(["a", "b", "c"], GREEDY)
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b", "c"], GREEDY, use_tqdm=True)
    assert "3/3" in capsys.readouterr().err

    class Bar:
        def __init__(self, total: int, **_: object) -> None:
            self.total, self.done = total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.is_closed = True

        def update(self, number: int) -> None:
            self.done += number

    bars: list[Bar] = []
    llm.generate(["a", "b", "c"], GREEDY, use_tqdm=Bar)
    assert [(bar.total, bar.done, bar.is_closed) for bar in bars] == [(3, 3, True)]
    with pytest.raises(OptionError, match="use_tqdm"):
        llm.generate("a", GREEDY, use_tqdm=5)


def test_a_bar_without_tqdm(llm, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(OptionError, match="needs tqdm"):
        llm.generate("a", GREEDY, use_tqdm=True)


def test_the_tokenizer(llm):
    tokenizer = llm.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("hé")) == "hé"


def test_bad_words_are_tokenized_with_and_without_a_blank(llm):
    """As vLLM does it: here " t" is one token, so that "t" has two forms; "he" is one, and two with a blank."""
    assert llm.engine.validator.bad_words(SamplingParams(bad_words=["t", "he", " x"])) == (
        tuple(llm.tokenize("t")), tuple(llm.tokenize(" t")), tuple(llm.tokenize("he")), tuple(llm.tokenize("x")),
    )  # fmt: skip


def score_all(weight: np.ndarray, prompt: list[int], length: int, stops: tuple[int, ...], penalty: float) -> list[tuple[float, list[int]]]:
    """Every continuation and its score, from the definition: the most likely ones have no rival that a wide search could miss."""
    likely = np.argsort(reference_logits(weight, prompt)[-1])[-6:]
    found = []
    for tail in itertools.product(likely.tolist(), repeat=length):
        tokens, total = list(prompt), 0.0
        for token_id in tail:
            logits = reference_logits(weight, tokens)[-1].astype(np.float64)
            total += float(logits[token_id] - np.log(np.exp(logits).sum()))
            tokens.append(token_id)
            if token_id in stops:
                break
        found.append((total / (len(tokens) - (tokens[-1] in stops)) ** penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_are_the_most_likely_continuations(llm, penalty):
    """A search that is as wide as the choice is exhaustive: its best is the best there is."""
    stops = llm.artifact.manifest.model.stop_token_ids
    weight = np.array(follow_of(llm.artifact), np.float64)
    for prompt in ([1, 2], [7, 3, 9]):
        (output,) = llm.beam_search([prompt], BeamSearchParams(beam_width=10, max_tokens=2, length_penalty=penalty))
        assert len(output.sequences) == 10
        best = output.sequences[0]
        score, tokens = score_all(weight, prompt, 2, stops, penalty)[0]
        assert best.tokens == tokens
        assert best.score(stops, penalty) == pytest.approx(score, abs=1e-4)
        scores = [sequence.score(stops, penalty) for sequence in output.sequences]
        assert scores == sorted(scores, reverse=True)
        assert best.text == llm.detokenize(best.tokens)


def test_one_beam_is_greedy_and_searches_share_nothing(llm):
    prompts = ["ab", {"prompt_token_ids": [1, 2, 3]}]
    params = BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True)
    greedy = [output.prompt_token_ids + output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]
    assert [output.sequences[0].tokens for output in llm.beam_search(prompts, params)] == greedy
    assert [llm.beam_search(prompt, params)[0].sequences[0].tokens for prompt in prompts] == greedy
    (long,) = llm.beam_search([[1] * (CONTEXT - 3)], BeamSearchParams(beam_width=2, max_tokens=99, ignore_eos=True))
    assert [(len(sequence.tokens), sequence.finish_reason) for sequence in long.sequences] == [(CONTEXT, "length")] * 2


def test_beams_that_end(tmp_path):
    """A model in which the end is likely at once, and always the same."""
    llm = LLM(make_artifact(tmp_path / "a"))
    stop = llm.artifact.manifest.model.stop_token_ids[0]
    weight = np.random.default_rng(0).normal(0, 2, (VOCAB, VOCAB)).astype(np.float32)
    weight[:, stop] = 20
    llm = LLM(make_artifact(tmp_path / "b", weight=weight))
    (output,) = llm.beam_search([[1, 2]], BeamSearchParams(beam_width=3, max_tokens=4))
    assert (output.sequences[0].tokens, output.sequences[0].finish_reason) == ([1, 2, stop], "stop")
    assert all(stop not in sequence.tokens[:-1] for sequence in output.sequences)


@pytest.mark.parametrize(
    ("field", "values"),
    [("beam_width", [0, -1, True, 1.5, 10**6]), ("max_tokens", [0, None]), ("length_penalty", ["1", float("nan")]), ("ignore_eos", [1])],
)
def test_wrong_beam_search(llm, field, values):
    for value in values:
        with pytest.raises(RequestError) as caught:
            BeamSearchParams(**{"beam_width": 2, "max_tokens": 2, field: value})
        assert caught.value.field == field
    with pytest.raises(RequestError, match="max_logprobs"):
        llm.beam_search("a", BeamSearchParams(beam_width=11, max_tokens=1))
    with pytest.raises(RequestError, match="params"):
        llm.beam_search("a", GREEDY)


TEMPLATE = (
    "{% if tools %}Call as <tool_call>: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": [WEATHER]},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
    ids=str,
)
def test_chats_are_rendered_as_transformers_does(tmp_path, options):
    llm = LLM(make_artifact(tmp_path / "a", template=TEMPLATE, context=1024))
    chat = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "So "}]
    given = {"add_generation_prompt": True, "chat_template": TEMPLATE, **options}
    expected, _ = render_jinja_template([chat], **{**given, **given.pop("chat_template_kwargs", {})})
    assert llm.render_chat(chat, **options) == expected[0]
    (output,) = llm.chat(chat, GREEDY, **options)
    assert output.prompt == expected[0]
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
    assert [o.prompt for o in llm.chat([chat, parts], GREEDY, use_tqdm=False, **options)] == expected * 2


def test_chats_that_are_wrong(llm):
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    for call, field in (
        (lambda: llm.chat(image, GREEDY), "content"),
        (lambda: llm.chat([{"role": "user", "content": "a"}], GREEDY, tools=[{"name": "weather"}]), "tools"),
        (lambda: llm.chat([{"role": "user", "content": "a"}], GREEDY, chat_template_kwargs=["x"]), "chat_template_kwargs"),
    ):
        with pytest.raises(RequestError, match=field):
            call()
