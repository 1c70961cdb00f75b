"""The engine over a fake model that notices every wrong slot, block table and copy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.runtime.device.host import HostOutput
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.validator import Validator
from cupola.runtime.errors import EngineError, OptionError, RequestError
from tests.runtime.fakes import (
    BLOCK,
    CONTEXT,
    MODEL,
    STOP,
    VOCAB,
    completions,
    fake_logits,
    generate_alone,
    greedy_reference,
    make_engine,
    run_all,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def test_a_prompt_may_not_hold_padding_that_positions_do_not_count():
    validator = Validator(replace(MODEL, padding_token_id=1), CONTEXT, 0, None)
    assert validator.encode([0, 2, 3]) == (0, 2, 3)
    with pytest.raises(RequestError, match="prompt: has the padding token 1, past which the model's positions do not count"):
        validator.encode([2, 1, 3])


@pytest.mark.parametrize("budget", [1, 7, 64])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("num_blocks", [12, 64])
def test_greedy_tokens_are_the_same_in_any_company(budget, caching, num_blocks):
    engine = make_engine(num_blocks, max_num_batched_tokens=budget, enable_prefix_caching=caching, max_num_seqs=8)
    batch = prompts([1, 3, 4, 5, 8, 17, 30, 12])
    for i, prompt in enumerate(batch):
        engine.add_request(str(i), prompt, GREEDY)
    outputs = run_all(engine)
    for i, prompt in enumerate(batch):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 12)
    if num_blocks == 12 and budget == 64:
        assert sum(output.metrics.num_preemptions for output in outputs.values()) > 0
    # No prompt has anything in common with another, and who comes again after a preemption finds nothing but its own.
    assert (engine.stats().num_prefix_hits, engine.stats().num_prefix_queries) == (0, sum(map(len, batch)))


def test_prefix_cache_is_used_and_salted():
    engine = make_engine()
    prompt = prompts([21])[0]
    counts = []
    for name, salt in [("cold", b""), ("warm", b""), ("other", b"salt")]:
        engine.add_request(name, prompt, GREEDY, cache_salt=salt)
        output = run_all(engine)[name]
        counts.append(output.num_cached_tokens)
        assert output.outputs[0].token_ids == greedy_reference(prompt, 12)
    assert counts == [0, 20, 0]


def test_a_second_turn_computes_what_is_new_alone():
    engine, first = make_engine(), prompts([21])[0]
    engine.add_request("first", first, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    second = [*first, *run_all(engine)["first"].outputs[0].token_ids, 1, 2, 3]
    num_before = engine.executor.num_tokens
    engine.add_request("second", second, SamplingParams(temperature=0, max_tokens=1))
    assert run_all(engine)["second"].num_cached_tokens == 32  # whole blocks of the 21 + 12, whose last one has no K/V yet
    assert engine.executor.num_tokens - num_before == len(second) - 32


def test_the_last_prompt_token_is_computed_even_if_all_blocks_are_cached():
    engine = make_engine()
    prompt = prompts([16])[0]
    for name, num_cached in [("cold", 0), ("warm", 12)]:
        engine.add_request(name, prompt, GREEDY)
        output = run_all(engine)[name]
        assert output.num_cached_tokens == num_cached
        assert output.outputs[0].token_ids == greedy_reference(prompt, 12)


@pytest.mark.parametrize("max_num_seqs", [2, 16])
def test_n_completions_share_the_prompt_and_differ(max_num_seqs):
    params = SamplingParams(n=5, seed=7, max_tokens=10)
    prompt = prompts([10])[0]
    engine = make_engine(max_num_seqs=max_num_seqs)
    engine.add_request("a", prompt, params)
    found = completions(run_all(engine)["a"])
    assert found == generate_alone(prompt, params)
    assert len({tuple(tokens) for tokens, _ in found}) == 5


def test_a_fork_copies_one_block_and_shares_the_rest():
    engine = make_engine(enable_prefix_caching=False)
    engine.add_request("a", prompts([10])[0], SamplingParams(n=3, max_tokens=3, ignore_eos=True))
    engine.step()
    (pool,) = engine.scheduler.states.pools
    assert pool.num_blocks - pool.num_free_blocks == 3  # ten tokens; nothing copied yet
    engine.step()
    assert pool.num_blocks - pool.num_free_blocks == 5  # two full blocks shared, the third is everyone's own


def test_seeded_samples_do_not_depend_on_company():
    params = SamplingParams(seed=3, max_tokens=10, top_k=20, top_p=0.9, repetition_penalty=1.2)
    engine = make_engine(16, max_num_batched_tokens=9)
    batch = prompts([5, 9, 14, 20])
    for i, prompt in enumerate(batch):
        engine.add_request(str(i), prompt, params)
    outputs = run_all(engine)
    for i, prompt in enumerate(batch):
        assert completions(outputs[str(i)]) == generate_alone(prompt, params)


def test_chains_of_samplers_remember_their_own_sequence_in_any_company():
    """Also where sequences are preempted and compute their tokens again; a greedy one is not the model's to go on with."""
    engine = make_engine(14, max_num_seqs=6)
    batch = prompts([4, 9, 13])
    settings = [
        SamplingParams(n=2, seed=1, max_tokens=14, ignore_eos=True, mirostat=2, mirostat_tau=3.0),
        SamplingParams(n=2, seed=2, max_tokens=14, ignore_eos=True, dry_multiplier=0.8, dry_allowed_length=1, xtc_probability=0.5),
        SamplingParams(temperature=0, max_tokens=14, ignore_eos=True, dry_multiplier=5.0, dry_allowed_length=0, repetition_penalty=3.0),
    ]
    for i, (prompt, params) in enumerate(zip(batch, settings, strict=True)):
        engine.add_request(str(i), prompt, params)
    outputs = run_all(engine)
    assert engine.stats().num_preemptions > 0
    for i, (prompt, params) in enumerate(zip(batch, settings, strict=True)):
        assert completions(outputs[str(i)]) == generate_alone(prompt, params)
    assert outputs["2"].outputs[0].token_ids != greedy_reference(batch[2], 14, stop=False)


def test_unseeded_requests_differ_but_engines_repeat():
    def tokens() -> list[list[int]]:
        engine = make_engine(seed=5)
        for name in "ab":
            engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=8, ignore_eos=True))
        return [output.outputs[0].token_ids for _, output in sorted(run_all(engine).items())]

    first, second = tokens()
    assert first != second
    assert tokens() == [first, second]


def test_decodes_are_not_stalled_by_a_long_prompt():
    engine = make_engine(max_num_batched_tokens=4)
    engine.add_request("a", [1, 2], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    engine.step()
    engine.add_request("b", prompts([40])[0], GREEDY)
    for count in range(2, 10):
        (request,) = engine.step()
        assert (request.spec.request_id, request.sequences[0].num_output_tokens) == ("a", count)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    budget=st.integers(1, 40),
    mixed=st.integers(1, 20),
    max_num_seqs=st.integers(1, 8),
    num_blocks=st.integers(12, 64),
    num_swap_blocks=st.sampled_from([0, 60]),
)
def test_decodes_wait_for_few_prompt_tokens_and_prompts_for_few_steps(lengths, budget, mixed, max_num_seqs, num_blocks, num_swap_blocks):
    options = {"max_num_batched_tokens": budget, "max_num_mixed_prefill_tokens": mixed, "max_num_seqs": max_num_seqs}
    engine = make_engine(num_blocks, num_swap_blocks, enable_prefix_caching=False, **options)
    scheduler, submit, batches = engine.scheduler, engine.executor.submit, []
    engine.executor.submit = lambda batch, sampling: batches.append(batch) or submit(batch, sampling)
    for i, prompt in enumerate(prompts(lengths)):
        engine.add_request(str(i), prompt, GREEDY)
    while engine.has_unfinished_requests():
        decoding = [sequence for sequence in scheduler.running if sequence.decoding]
        prefilling = [sequence for sequence in scheduler.running if not sequence.decoding]
        num_known, num_preemptions = sum(sequence.num_new_tokens for sequence in prefilling), scheduler.num_preemptions
        engine.step()
        num_tokens = len(batches[-1].tokens)
        assert num_tokens <= budget
        if scheduler.num_preemptions > num_preemptions:
            assert num_tokens <= len(decoding) + mixed or not decoding
            continue
        num_prompt_tokens = num_tokens - min(budget, len(decoding))
        if decoding:
            assert num_prompt_tokens <= mixed
        if prefilling:  # they go on with all the room there is
            assert num_prompt_tokens >= min(num_known, budget - len(decoding), mixed if decoding else budget)
    engine.check_idle()


def test_priority_goes_first():
    engine = make_engine(max_num_seqs=1)
    for name, priority in [("a", 1), ("b", 1), ("urgent", 0)]:
        engine.add_request(name, [1, 2], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), priority=priority)
    order = [request.spec.request_id for _ in range(6) for request in engine.step() if request.finished]
    assert order == ["urgent", "a", "b"]


def test_the_context_is_an_end():
    for length in (CONTEXT - 1, CONTEXT):
        engine = make_engine()
        engine.add_request("a", [1] * length, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
        (completion,) = run_all(engine)["a"].outputs
        assert (len(completion.token_ids), completion.finish_reason) == (1, "length")
    engine.add_request("b", [1] * 5, SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True))
    assert len(run_all(engine)["b"].outputs[0].token_ids) == CONTEXT - 5


def test_a_small_pool_is_an_end_too():
    engine = make_engine(3)
    engine.add_request("a", [1] * 5, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    assert len(run_all(engine)["a"].outputs[0].token_ids) == 12 - 5
    with pytest.raises(RequestError, match="kv_memory"):
        engine.add_request("b", [1] * 13, GREEDY)


def test_stop_tokens():
    prompt = next(p for p in ([i, 1] for i in range(VOCAB)) if STOP not in greedy_reference(p, 8) and len(set(greedy_reference(p, 8))) == 8)
    tokens = greedy_reference(prompt, 8)
    engine = make_engine()
    engine.add_request("stop", prompt, SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[tokens[3]]))
    engine.add_request("late", prompt, SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[tokens[3]], min_tokens=6))
    engine.add_request("bias", prompt, SamplingParams(temperature=0, max_tokens=8, logit_bias={STOP: 100}))
    engine.add_request("ignored", prompt, SamplingParams(temperature=0, max_tokens=8, logit_bias={STOP: 100}, ignore_eos=True))
    outputs = {name: output.outputs[0] for name, output in run_all(engine).items()}
    assert (outputs["stop"].token_ids, outputs["stop"].finish_reason, outputs["stop"].stop_reason) == (tokens[:4], "stop", tokens[3])
    assert len(outputs["late"].token_ids) >= 6
    assert tokens[3] not in outputs["late"].token_ids[:6]
    assert (outputs["bias"].token_ids, outputs["bias"].finish_reason, outputs["bias"].stop_reason) == ([STOP], "stop", None)
    assert outputs["ignored"].token_ids == [STOP] * 8


@pytest.mark.parametrize("budget", [3, 100])
def test_logprobs(budget):
    prompt = prompts([10])[0]
    engine = make_engine(max_num_batched_tokens=budget)
    for name in ("cold", "warm"):  # prompt logprobs must not come up short when the prompt is cached
        engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2, prompt_logprobs=1))
        output = run_all(engine)[name]
        assert output.prompt_logprobs[0] is None
        context = list(prompt)
        entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        for i, (token, entry) in enumerate(zip([*prompt[1:], *output.outputs[0].token_ids], entries, strict=True)):
            context = [*prompt, *output.outputs[0].token_ids][: i + 1]
            logits = fake_logits(context).astype(np.float64)
            expected = logits - np.log(np.exp(logits).sum())
            assert next(iter(entry)) == token
            assert entry[token].logprob == pytest.approx(expected[token], abs=1e-5)
            assert entry[token].rank == int((logits > logits[token]).sum()) + 1
            num_top = 1 if i < len(prompt) - 1 else 2
            assert set(entry) == {token, *np.argsort(-logits)[:num_top].tolist()}
        total = sum(entry[token].logprob for token, entry in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True))
        assert output.outputs[0].cumulative_logprob == pytest.approx(total)


def test_max_logprobs_is_as_in_vllm():
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=-1, prompt_logprobs=-1)
    for limit in (-1, VOCAB, 2**31 - 1):
        engine = make_engine(max_logprobs=limit)
        engine.add_request("all", [1, 2, 3], params)
        output = run_all(engine)["all"]
        assert [len(entry) for entry in output.outputs[0].logprobs] == [VOCAB] * 2
        assert [len(entry) for entry in output.prompt_logprobs[1:]] == [VOCAB] * 2
        ranks = [entry.rank for entry in output.outputs[0].logprobs[0].values()]
        assert ranks == list(range(1, VOCAB + 1))
        with pytest.raises(RequestError, match=f"logprobs: asks for {VOCAB + 1} .give at most {VOCAB}"):
            engine.add_request("more", [1], SamplingParams(logprobs=VOCAB + 1))
    with pytest.raises(RequestError, match=f"asks for {VOCAB} .give at most 3, or make the LLM with max_logprobs={VOCAB}"):
        make_engine(max_logprobs=3).add_request("all", [1], params)
    make_engine(max_logprobs=0).add_request("none", [1], SamplingParams(logprobs=0))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_step_that_ends_early_leaves_the_engine_usable(error, monkeypatch):
    engine = make_engine(16)
    engine.add_request("a", [1, 2, 3], GREEDY)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.executor, "submit", lambda *_: (_ for _ in ()).throw(error()))
        with pytest.raises(EngineError if error is MemoryError else KeyboardInterrupt):
            engine.step()
    engine.scheduler.check_integrity()
    assert run_all(engine)["a"].outputs[0].token_ids == greedy_reference([1, 2, 3], 12)


def test_a_failed_step_loses_nothing():
    engine = make_engine(16, max_num_batched_tokens=8)
    batch = prompts([5, 9, 14])
    for i, prompt in enumerate(batch):
        engine.add_request(str(i), prompt, GREEDY)
    outputs = {}
    for step in range(1000):
        if not engine.has_unfinished_requests():
            break
        engine.executor.num_failures = int(step % 5 == 4)
        try:
            outputs.update({request.spec.request_id: request.output() for request in engine.step()})
        except EngineError as error:
            assert "on fire" in str(error)
        engine.scheduler.check_integrity()
    engine.check_idle()
    for i, prompt in enumerate(batch):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 12)


def test_nan_logits_are_an_error_and_the_request_can_be_aborted(monkeypatch):
    engine = make_engine()
    monkeypatch.setattr(
        engine.executor, "submit", lambda batch, _: HostOutput.of(np.full((len(batch.logit_rows), VOCAB), np.nan, np.float32))
    )
    engine.add_request("a", [1], SamplingParams(temperature=0))
    engine.add_request("b", [1], SamplingParams(temperature=1))
    with pytest.raises(EngineError, match="NaN"):
        engine.step()
    assert engine.abort("a")
    with pytest.raises(EngineError, match="NaN"):
        engine.step()
    assert engine.abort("b")
    assert not engine.abort("b")
    engine.check_idle()


@pytest.mark.parametrize(
    ("prompt", "field"),
    [([], "prompt"), ([-1], "prompt"), ([VOCAB], "prompt"), ([True], "prompt"), ([1.5], "prompt"), ([2**70], "prompt"), (["a"], "prompt"),
     ([1] * (CONTEXT + 1), "prompt"), ([1] * 10**5, "prompt"), ("text", "prompt"), (None, "prompt"), (5, "prompt"), ({"a": 1}, "prompt")],
)  # fmt: skip
def test_bad_prompts_are_refused(prompt, field):
    engine = make_engine()
    with pytest.raises(RequestError) as caught:
        engine.add_request("a", prompt, GREEDY)
    assert caught.value.field == field
    assert not engine.has_unfinished_requests()
    engine.check_idle()


@pytest.mark.parametrize(
    ("params", "field"),
    [(SamplingParams(allowed_token_ids=[VOCAB]), "allowed_token_ids"), (SamplingParams(bad_words=["a"]), "bad_words"),
     (SamplingParams(logit_bias={VOCAB: 1}), "logit_bias"),
     (SamplingParams(stop_token_ids=[VOCAB]), "stop_token_ids"), (SamplingParams(stop="a"), "stop"), ({"n": 1}, "sampling_params"),
     (SamplingParams(logprobs=21), "logprobs"), (SamplingParams(logprobs=-1), "logprobs"),
     (SamplingParams(prompt_logprobs=10**9), "prompt_logprobs")],
)  # fmt: skip
def test_params_are_checked_against_the_model(params, field):
    with pytest.raises(RequestError) as caught:
        make_engine().add_request("a", [1], params)
    assert caught.value.field == field


def test_bad_engine_options_are_refused():
    for config in ({"max_num_seqs": 0}, {"max_num_batched_tokens": True}, {"seed": -1}, {"max_logprobs": -2}, {"enable_prefix_caching": 1},
                   {"max_num_mixed_prefill_tokens": 0}, {"num_scheduler_steps": 0}):  # fmt: skip
        with pytest.raises(OptionError, match=next(iter(config))):
            make_engine(**config)


@dataclass(frozen=True)
class Plan:
    """One random request, what happens to it, and how many steps pass before the next one."""

    prompt: list[int]
    params: SamplingParams
    priority: int
    num_steps_after: int
    abort_after: int | None
    fails: bool
    disk_is_full: bool


def draw_plan(seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0).integers(0, VOCAB, 24).tolist()
    prompt = (common[: rng.integers(25)] + rng.integers(0, VOCAB, 40).tolist())[: rng.integers(1, 41)]
    params = SamplingParams(
        n=int(rng.choice([1, 1, 1, 2, 3])),
        temperature=int(rng.choice([0, 0, 1])),
        max_tokens=int(rng.integers(1, 15)),
        seed=seed,
        prompt_logprobs=rng.choice([None, None, None, 0]),
    )
    abort_after = rng.choice([None, None, None, None, None, 0, 1, 2, 5])
    return Plan(prompt, params, int(rng.integers(2)), int(rng.integers(4)), abort_after, rng.random() < 0.05, rng.random() < 0.1)


@settings(max_examples=25)
@given(
    seeds=st.lists(st.integers(0, 2**32), min_size=40, max_size=40),
    num_blocks=st.integers(12, 40),
    budget=st.sampled_from([1, 7, 16, 64]),
    max_num_seqs=st.integers(1, 8),
    caching=st.booleans(),
    num_swap_blocks=st.sampled_from([0, 6, 60]),
)
def test_a_thousand_random_requests(seeds, num_blocks, budget, max_num_seqs, caching, num_swap_blocks):
    """25 times 40 of them: nothing leaks, nothing is lost, and each gets what it would get alone."""
    options = {"max_num_batched_tokens": budget, "max_num_seqs": max_num_seqs, "enable_prefix_caching": caching}
    engine = make_engine(num_blocks, num_swap_blocks, **options)
    plans = {str(i): draw_plan(seed) for i, seed in enumerate(seeds)}
    outputs, aborts, aborted, step = {}, {}, set(), 0

    def advance() -> None:
        nonlocal step
        for name in [name for name, at in aborts.items() if at <= step]:
            aborts.pop(name)
            if engine.abort(name):
                aborted.add(name)
        if engine.has_unfinished_requests():
            try:
                outputs.update({request.spec.request_id: request.output() for request in engine.step()})
            except EngineError as error:
                assert "on fire" in str(error)
        engine.scheduler.check_integrity()
        step += 1

    for name, plan in plans.items():
        engine.add_request(name, plan.prompt, plan.params, priority=plan.priority)
        if plan.abort_after is not None:
            aborts[name] = step + plan.abort_after
        engine.executor.num_failures, engine.executor.disk_is_full = int(plan.fails), plan.disk_is_full
        for _ in range(plan.num_steps_after):
            advance()
    while engine.has_unfinished_requests():
        advance()
    engine.check_idle()
    for name in plans.keys() - aborted:
        plan, output = plans[name], outputs[name]
        room = min(CONTEXT, num_blocks * BLOCK) - len(plan.prompt)
        assert completions(output) == _cut(generate_alone(plan.prompt, plan.params), room)
        if plan.params.prompt_logprobs is not None:
            assert len(output.prompt_logprobs) == len(plan.prompt)


def _cut(found: list[tuple[list[int], str | None]], room: int) -> list[tuple[list[int], str | None]]:
    """Completions cut to a pool that holds `room` new tokens."""
    return [(tokens[: max(1, room)], reason if len(tokens) <= max(1, room) else "length") for tokens, reason in found]


def test_requests_that_leave_no_token_end_with_an_error_and_others_go_on():
    engine = make_engine()
    engine.add_request("none", [1, 2], SamplingParams(n=2, allowed_token_ids=[STOP], min_tokens=3, max_tokens=9))
    engine.add_request("other", [1, 2], SamplingParams(temperature=0, max_tokens=9))
    outputs = run_all(engine)
    assert all(o.finish_reason == "error" and "leaves none" in o.error and not o.token_ids for o in outputs["none"].outputs)
    assert completions(outputs["other"]) == generate_alone([1, 2], SamplingParams(temperature=0, max_tokens=9))


def test_restrictions_keep_the_model_from_going_on_alone():
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, allowed_token_ids=[2, 4, 6, 8])
    tokens = [1, 2]
    for _ in range(12):
        tokens.append(max([2, 4, 6, 8], key=lambda i: fake_logits(tokens)[i]))
    engine = make_engine(num_scheduler_steps=8)
    engine.add_request("a", [1, 2], params)
    assert completions(run_all(engine)["a"]) == [(tokens[2:], "length")]


@pytest.mark.parametrize(
    ("wanted", "max_tokens", "kept"), [(3, 5, 3), (99, 5, 10), (-1, 5, 10), (-1, CONTEXT - 4, 4), (-1, None, 10), (1, 1, 1)]
)
def test_prompts_are_cut_from_the_front(wanted, max_tokens, kept):
    engine, prompt = make_engine(), list(range(10))
    params = SamplingParams(temperature=0, max_tokens=max_tokens, truncate_prompt_tokens=wanted)
    request = engine.add_request("a", prompt, params)
    assert request.spec.prompt_token_ids == tuple(prompt[10 - kept :])
    assert len(engine.add_request("b", [1] * 10_000, SamplingParams(truncate_prompt_tokens=-1)).spec.prompt_token_ids) == CONTEXT - 16


def test_samples_differ_between_engines_unless_there_is_a_seed():
    def said(params: SamplingParams, **config: int) -> list:
        engine = make_engine(**config)
        engine.add_request("a", [1, 2], params)
        return completions(run_all(engine)["a"])

    sampled = SamplingParams(max_tokens=12, ignore_eos=True)
    assert said(sampled) != said(sampled)
    assert said(sampled, seed=1) == said(sampled, seed=1) != said(sampled, seed=2)
    assert said(replace(sampled, seed=-1)) != said(replace(sampled, seed=-1))
    assert said(replace(sampled, seed=5)) == said(replace(sampled, seed=5))


def test_a_step_with_nothing_to_do_gives_nothing():
    engine = make_engine()
    assert engine.step() == []
    engine.add_request("a", [1, 2], SamplingParams(temperature=0, max_tokens=1))
    assert [request.finished for request in engine.step()] == [True]
    assert engine.step() == [] and engine.executor.num_steps == 1
