"""The engine with grammars: the same tokens whatever runs beside, is preempted, fails or is killed; and nobody waits for a slow one."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from cupola.runtime.engine import grammar_masks
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import EngineError, RequestError
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.text.tokenizer import Tokenizer
from tests.runtime.engine.speculating import Oracle, speculate
from tests.runtime.fakes import MODEL, STOP, VOCAB, FakeExecutor, fake_logits, make_engine, run_all

TOKENS = [*'abcdefghijklmnopqrstuvwxyz0123456789{}[]":,._-+*/()<>=!?; \n', "a" * 24]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"type": "array", "items": {"enum": ["x", "yy"]}, "maxItems": 2}},
    "required": ["a"],
}
TEXTS = [StructuredOutputs(json=SCHEMA), StructuredOutputs(regex="[ab]{2,9}c?"), StructuredOutputs(choice=["yes", "no", "not now"])]
LONG = {"max_tokens": 40, "temperature": 0.0}
MANY = 59  # the token of many letters
SLOW = SamplingParams(
    max_tokens=40, logit_bias={MANY: 100}, structured_outputs=StructuredOutputs(regex="((a{1,100}){1,100}){1,100}")
)  # takes longer with every letter


def letter_tokenizer() -> Library:
    """A token a letter, one of many, and STOP."""
    tokenizer = Library(models.BPE({token: i for i, token in enumerate(TOKENS)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    assert (TOKENS.index("a" * 24), tokenizer.token_to_id("<end>")) == (MANY, STOP)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    letter_tokenizer().save(str(file))
    return Tokenizer(file)


@pytest.fixture(scope="module")
def engines(tokenizer):
    """Makes engines that share their grammars' processes, so that each test need not start them."""
    compiler = GrammarCompiler(tokenizer.file, VOCAB, [STOP], max_kept=16)

    def make(num_blocks: int = 64, num_swap_blocks: int = 0, recurrent: bool = False, **config: object) -> Engine:
        executor = FakeExecutor(num_blocks, num_swap_blocks, recurrent=recurrent)
        return Engine(executor, MODEL, executor.kv, EngineConfig(**config), tokenizer, compiler)

    yield make
    compiler.close()


@pytest.fixture(scope="module")
def compiled(tokenizer):
    """The grammars of TEXTS, by XGrammar's own package."""
    import xgrammar
    from transformers import PreTrainedTokenizerFast

    transformers_tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.file))
    info = xgrammar.TokenizerInfo.from_huggingface(transformers_tokenizer, vocab_size=VOCAB, stop_token_ids=[STOP])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    regexes = [TEXTS[1].regex, "|".join(TEXTS[2].choice)]
    return [compiler.compile_json_schema(SCHEMA, any_whitespace=False), *map(compiler.compile_regex, regexes)]


def greedy_reference(prompt: list[int], compiled_grammar: object) -> list[int]:
    """Greedy tokens straight from the definition; a grammar that can only end adds no stop token."""
    import xgrammar

    matcher, tokens = xgrammar.GrammarMatcher(compiled_grammar), list(prompt)
    while True:
        mask = xgrammar.allocate_token_bitmask(1, VOCAB)
        matcher.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8)[0], bitorder="little", count=VOCAB).astype(bool)
        if bits.nonzero()[0].tolist() == [STOP]:
            break
        tokens.append(int(np.where(bits, fake_logits(tokens), -np.inf).argmax()))
        assert matcher.accept_token(tokens[-1])
        if tokens[-1] == STOP:
            break
    return tokens[len(prompt) :]


@settings(max_examples=25)
@given(
    requests=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(0, len(TEXTS))), min_size=1, max_size=6),
    num_blocks=st.integers(14, 40),
    num_swap_blocks=st.sampled_from([0, 5, 20]),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(1, 16),
    failures=st.sets(st.integers(0, 30), max_size=3),
    kills=st.sets(st.integers(0, 30), max_size=1),
    caching=st.booleans(),
    grace=st.sampled_from([0.0, 0.02]),
    num_right=st.sampled_from([None, 0, 4]),
    recurrent=st.booleans(),
)
def test_greedy_answers_are_the_reference_whatever_happens(
    engines, compiled, requests, num_blocks, num_swap_blocks, max_num_seqs, max_num_batched_tokens, failures, kills, caching, grace,
    num_right, recurrent,
):  # fmt: skip
    """Whatever is drafted, too: what a grammar forbids, and what is right `num_right` times."""
    options = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens, "enable_prefix_caching": caching}
    engine = engines(num_blocks, num_swap_blocks, recurrent, **options)
    grammar_masks.GRACE_SECONDS = grace  # none: masks are late, and their sequences compute their last token again
    expected = {}
    for i, (start, length, kind) in enumerate(requests):
        prompt = [(start + j) % 50 for j in range(length)]
        structured_outputs = TEXTS[kind] if kind < len(TEXTS) else None
        engine.add_request(str(i), prompt, SamplingParams(**LONG, structured_outputs=structured_outputs))
        if structured_outputs is not None:
            expected[str(i)] = greedy_reference(prompt, compiled[kind])
    if num_right is not None:
        answers = {name.split(".")[0]: token_ids for name, token_ids in expected.items()}
        with pytest.MonkeyPatch.context() as patch:
            speculate(engine, Oracle(lambda name: answers.get(name.partition(".")[0], []), num_right), patch)
        engine.speculation.costs.table = lambda most: [1.0] * (most + 1)
    outputs, step = {}, 0
    while engine.has_unfinished_requests():
        engine.executor.num_failures = step in failures
        if step in kills:
            engine.close()
        step += 1
        try:
            for request in engine.step():
                outputs[request.spec.request_id] = request.output().outputs[0]
        except EngineError:
            continue
        finally:
            engine.scheduler.check_integrity()
    engine.check_idle()
    for name, token_ids in expected.items():
        assert (outputs[name].token_ids, outputs[name].finish_reason) == (token_ids, "stop")


def test_drafts_in_a_grammar_bring_tokens_sooner(engines, compiled, monkeypatch):
    wanted = greedy_reference([1, 2, 3], compiled[0])
    engine = speculate(engines(), Oracle(lambda _: wanted, 6), monkeypatch)
    engine.add_request("a", [1, 2, 3], SamplingParams(**LONG, structured_outputs=TEXTS[0]))
    outputs = run_all(engine)
    assert outputs["a"].outputs[0].token_ids == wanted
    assert engine.stats().num_accepted_tokens >= len(wanted) // 3


@pytest.fixture(autouse=True)
def usual_grace():
    yield
    grammar_masks.GRACE_SECONDS = 0.02


def test_late_masks_leave_prompt_scores_and_completions_as_they_are(engines):
    params = SamplingParams(n=3, seed=1, temperature=1, max_tokens=40, structured_outputs=TEXTS[0], prompt_logprobs=2, logprobs=1)
    outputs = []
    for grace in (10.0, 0.0):
        engine = engines(max_num_batched_tokens=5)
        grammar_masks.GRACE_SECONDS = grace
        engine.add_request("a", list(range(12)), params)
        outputs.append((run_all(engine)["a"], engine.executor.num_steps))
    (early, num_steps), (late, num_late_steps) = outputs
    assert early.outputs == late.outputs and early.prompt_logprobs == late.prompt_logprobs
    assert len(late.prompt_logprobs) == 12 and num_late_steps >= num_steps  # a mask may come at once


def test_each_of_n_completions_follows_the_grammar(engines):
    engine = engines(max_num_seqs=3)
    params = SamplingParams(n=5, temperature=1, seed=3, max_tokens=40, structured_outputs=TEXTS[0], logprobs=2)
    engine.add_request("a", [1, 2, 3], params)
    completions = run_all(engine)["a"].outputs
    for completion in completions:
        assert completion.finish_reason == "stop"
        jsonschema.validate(json.loads(completion.text), SCHEMA)
    assert len({completion.text for completion in completions}) > 1


def test_logprobs_stay_the_raw_models(engines):
    engine = engines()
    engine.add_request("a", [1, 2, 3], SamplingParams(**LONG, structured_outputs=TEXTS[2], logprobs=0))
    completion = run_all(engine)["a"].outputs[0]
    tokens = [1, 2, 3]
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        logits = fake_logits(tokens).astype(np.float64)
        assert entry[token_id].logprob == pytest.approx(logits[token_id] - np.log(np.exp(logits).sum()), abs=1e-5)
        tokens.append(token_id)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ignore_eos": True}, "a" * 9),
        ({"min_tokens": 9, "max_tokens": 40}, "a" * 9),
        ({"min_tokens": 40, "max_tokens": 40}, "a" * 9),
        ({"stop_token_ids": [0], "min_tokens": 4}, "aaa"),  # nothing else may come, until it may stop
        ({"logit_bias": {0: -100}, "ignore_eos": True}, "a" * 9),
        ({"logit_bias": {STOP: 100}}, "aa"),
        ({"stop": ["aa"]}, ""),
        ({"max_tokens": 3, "ignore_eos": True}, "aaa"),
    ],
)
def test_the_grammar_wins_over_what_would_leave_no_token(engines, options, expected):
    engine = engines()
    params = SamplingParams(**{**LONG, **options}, structured_outputs=StructuredOutputs(regex="a{2,9}"))
    engine.add_request("a", [1, 2, 3], params)
    completion = run_all(engine)["a"].outputs[0]
    assert completion.text == expected
    assert completion.finish_reason == ("length" if options.get("max_tokens") == 3 else "stop")


def test_an_empty_answer_is_an_answer(engines):
    engine = engines()
    engine.add_request("a", [1], SamplingParams(n=2, structured_outputs=StructuredOutputs(grammar='root ::= ""')))
    assert [(c.token_ids, c.finish_reason) for c in run_all(engine)["a"].outputs] == [([], "stop")] * 2


def test_a_slow_grammar_fails_alone_while_others_go_on(engines):
    engine, alone = engines(), engines()
    others = {"b": SamplingParams(temperature=0, max_tokens=40, ignore_eos=True), "c": SamplingParams(**LONG, structured_outputs=TEXTS[0])}
    for name, params in others.items():
        alone.add_request(name, [7, 8, 9], params)
    expected = {name: output.outputs for name, output in run_all(alone).items()}
    engine.add_request("slow", [1, 2], SLOW)
    failed, answers = None, []
    while failed is None:
        for name in others.keys() - engine.scheduler.requests.keys():
            engine.add_request(name, [7, 8, 9], others[name])
        for request in engine.step():
            if request.finished and request.spec.request_id == "slow":
                failed = request.output().outputs[0]
            elif request.finished:
                answers.append((request.spec.request_id, request.output().outputs))
    assert failed.finish_reason == "error" and "too much time" in failed.error
    assert len(answers) > 2 and all(outputs == expected[name] for name, outputs in answers)
    run_all(engine)


def test_killed_processes_cost_nobody_an_answer(engines, compiled):
    engine = engines()
    for i in range(2):
        engine.add_request(str(i), [i, 5], SamplingParams(**LONG, structured_outputs=TEXTS[i]))
    for _ in range(3):
        engine.step()
    for child in psutil.Process().children():
        for process in child.children():  # of the one that holds the vocabulary: a process for each grammar
            process.kill()
    outputs = run_all(engine)
    for i in range(2):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference([i, 5], compiled[i])
    assert not engine._grammars._retried


def test_a_sequence_whose_grammar_is_late_can_be_aborted(engines):
    engine = engines()
    engine.add_request("slow", [1, 2], SLOW)
    while (
        not engine._grammars._matchings or not any(m.asked for m in engine._grammars._matchings.values()) or len(engine_tokens(engine)) < 3
    ):
        engine.step()
    engine.step()
    assert engine.abort("slow")
    assert not engine._grammars._matchings and not engine._grammars._answers
    engine.add_request("b", [1, 2], SamplingParams(**LONG, structured_outputs=TEXTS[1]))
    assert run_all(engine)["b"].outputs[0].finish_reason == "stop"


def engine_tokens(engine: Engine) -> list[int]:
    return engine.scheduler.requests["slow"].sequences[0].output_token_ids


def test_a_grammar_compiled_elsewhere(engines, tokenizer):
    elsewhere = GrammarCompiler(tokenizer.file, VOCAB, [STOP])
    compiled = elsewhere.compile(TEXTS[2])
    elsewhere.close()
    engine = engines()
    engine.add_request("a", [1, 2], SamplingParams(**LONG, structured_outputs=TEXTS[2]), compiled_grammar=compiled)
    assert run_all(engine)["a"].outputs[0].text in TEXTS[2].choice


def test_a_bad_grammar_is_refused_and_changes_nothing(engines):
    engine = engines()
    with pytest.raises(RequestError, match=r"structured_outputs\.regex: can't be used"):
        engine.add_request("a", [1, 2], SamplingParams(structured_outputs=StructuredOutputs(regex="(a")))
    assert not engine.has_unfinished_requests()
    engine.check_idle()


def test_a_bad_grammar_that_nobody_checked_fails_its_request_alone(engines):
    engine = engines()
    engine.add_request("bad", [1, 2], SamplingParams(structured_outputs=StructuredOutputs(regex="a")), compiled_grammar=b'["regex", "(a"]')
    engine.add_request("good", [1, 2], SamplingParams(**LONG, structured_outputs=TEXTS[1]))
    outputs = run_all(engine)
    assert outputs["bad"].outputs[0].finish_reason == "error" and outputs["good"].outputs[0].finish_reason == "stop"


def test_without_a_tokenizer_there_is_no_structured_output():
    engine = make_engine(8)
    with pytest.raises(RequestError, match="no tokenizer"):
        engine.add_request("a", [1], SamplingParams(structured_outputs=TEXTS[1]))
