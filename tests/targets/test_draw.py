"""Tokens that the model draws: the host sampler's, and those of float64, for the same logits and random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.runtime.artifact.inputs import LIKELIEST, LIMIT, NO_LIMIT, ONE, TEMPERATURE, TOP_K, TOP_P, UNIFORMS
from cupola.runtime.engine.draws import parameter_columns, uniform_columns
from cupola.runtime.engine.sampler import draw
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.targets.testing import references
from cupola.targets.testing.case import SMOLLM2
from cupola.targets.testing.catalogue import sample
from tests.targets.harness import GPU, RUNNABLE, target_of

WIDTH = 1000  # no whole number of blocks
LAST = 1 - 2.0**-53  # the largest number of a stream


Kernel = Callable[[np.ndarray, np.ndarray], list[int]]


@pytest.fixture(params=[*RUNNABLE, GPU])
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def kernel(isa: str, width: int = WIDTH) -> Kernel:
    """Tokens of rows of logits and draws."""
    target = target_of(isa)
    run = compile_case(sample(replace(SMOLLM2, vocabulary=width), target), target)

    def tokens(logits: np.ndarray, draws: np.ndarray) -> list[int]:
        maxima = references.block_maxima({"x": logits}).value.astype("float32")
        return [int(token) for token in run({"logits": logits, "maxima": maxima, "draws": draws})]

    return tokens


def columns(params: SamplingParams, uniform: float) -> tuple[int, ...]:
    return (*parameter_columns(params), *uniform_columns([uniform]))


def rows(random: np.random.Generator, count: int, width: int) -> tuple[np.ndarray, list[SamplingParams], np.ndarray]:
    """Logits from nearly equal to far apart, a third of them with many that are equal; parameters and uniform numbers."""
    logits = (random.choice([0.01, 1, 3, 8], (count, 1)) * random.standard_normal((count, width))).astype("float32")
    logits[::3] = np.rint(4 * logits[::3]) / 4
    choices = {
        "temperature": (0.1, 0.8, 1, 1.7, 50),
        "top_k": (0, 1, 5, 40, width),
        "top_p": (1, 0.9, 0.5, 0.999),
        "min_p": (0, 0.02, 0.3, 1),
    }
    params = [SamplingParams(**{name: random.choice(values).item() for name, values in choices.items()}) for _ in range(count)]
    return logits, params, random.random(count)


@pytest.mark.parametrize(("width", "count"), [(WIDTH, 300), (50_257, 40)])
def test_tokens_are_the_hosts_and_those_of_float64(isa: str, width: int, count: int) -> None:
    logits, params, uniforms = rows(np.random.default_rng(width), count, width)
    draws = np.array([columns(*each) for each in zip(params, uniforms, strict=True)], "int32")
    found = kernel(isa, width)(logits, draws)
    expected = references.sample({"logits": logits, "draws": draws})
    clear = np.isfinite(expected.slack)  # else two shares are within a millionth of each other
    assert clear.mean() > 0.97
    assert np.array(found)[clear].tolist() == expected.value[clear].tolist()
    host = np.array([draw(*each) for each in zip(logits, params, uniforms, strict=True)])
    assert np.array(found)[clear].tolist() == host[clear].tolist()
    assert len(set(found)) > count / 4


def test_tokens_come_as_often_as_they_are_likely(isa: str) -> None:
    count, shares = 400, np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.full((count, WIDTH), -np.inf, "float32")
    logits[:, [3, 70, 500, 999]] = np.log(shares)
    draws = np.array([columns(SamplingParams(), (i + 0.5) / count) for i in range(count)], "int32")
    tokens, counts = np.unique(kernel(isa)(logits, draws), return_counts=True)
    assert tokens.tolist() == [3, 70, 500, 999] and counts.tolist() == (shares * count).tolist()


@pytest.mark.parametrize("uniform", [0.0, 0.3, LAST])
@pytest.mark.parametrize(
    "params",
    [{"top_k": 2}, {"top_p": 0.4}, {"top_p": 1e-9}, {"min_p": 0.99}, {"top_k": 3, "top_p": 0.7}, {"temperature": 100}, {}],
    ids=str,
)
def test_of_equal_logits_at_an_end_all_are_left(isa: str, params: dict[str, float], uniform: float) -> None:
    logits = np.full(WIDTH, -3, "float32")
    logits[[20, 64, 65, 900]] = 2
    given = SamplingParams(**params)
    [found] = kernel(isa)(logits[None], np.array([columns(given, uniform)], "int32"))
    assert found == draw(logits, given, uniform)


def test_the_likeliest_is_the_first_of_the_largest(isa: str) -> None:
    random = np.random.default_rng(0)
    logits = np.rint(random.standard_normal((20, WIDTH))).astype("float32")
    logits[1], logits[2], logits[3, 7:9], logits[4, 999] = -np.inf, 0.0, np.inf, np.nan
    logits[5, 64:128] = np.nan
    found = kernel(isa)(logits, np.array([LIKELIEST] * 20, "int32"))
    assert found == [-1 if np.isnan(row).any() else int(row.argmax()) for row in logits]


def test_what_is_no_finite_number_is_as_the_host_has_it(isa: str) -> None:
    logits = np.random.default_rng(0).standard_normal((6, WIDTH)).astype("float32")
    logits[0], logits[1, [5, 9]], logits[2, 3], logits[3, ::2], logits[4, :-1] = -np.inf, np.inf, np.nan, -np.inf, -np.inf
    params = SamplingParams(top_k=50, top_p=0.9, min_p=0.01)
    found = kernel(isa)(logits, np.array([columns(params, 0.7)] * 6, "int32"))
    host = [draw(row, params, 0.7) for row in logits]
    assert found == [*host[:2], -1, *host[3:]]


def test_columns_are_what_parameters_mean() -> None:
    params = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05)
    found = np.array(columns(params, 0.123456789), "int32")
    assert found[TEMPERATURE : TEMPERATURE + 1].view("float32")[0] == np.float32(0.7) and found[TOP_K] == 40
    assert found[TOP_P] / ONE + found[TOP_P + 1] / ONE**2 == 0.9
    assert found[UNIFORMS] / ONE + found[UNIFORMS + 1] / ONE**2 == 0.123456789
    limit = found[LIMIT : LIMIT + 1].view("float32")[0]
    assert -limit >= np.log(0.05) > np.nextafter(-limit, np.float32(-9))  # as numpy compares, in float64
    plain = columns(SamplingParams(top_k=-1), LAST)
    assert (plain[LIMIT], plain[TOP_K], plain[TOP_P]) == (NO_LIMIT, 0, ONE) and plain[UNIFORMS : UNIFORMS + 2] == (ONE - 1, ONE - 128)
    assert columns(SamplingParams(min_p=1), 0.0)[LIMIT] == 0
    assert columns(SamplingParams(top_k=2**40), 0.0)[TOP_K] == 2**31 - 1
