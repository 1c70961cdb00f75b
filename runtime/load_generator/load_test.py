"""The options of a load test: vLLM's `bench serve` options by name, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from cupola.runtime.errors import OptionError

DATASETS = ("random", "sharegpt", "prefix_repetition")
METRICS = ("ttft", "tpot", "itl", "e2el")
OBJECTIVES = ("ttft", "tpot", "e2el")
MAX_TOKENS, MAX_PROMPTS, DAY_S = 1 << 24, 10_000_000, 86_400

# Field -> the numbers that it may be.
_RANGES: Mapping[str, tuple[float, float]] = {
    "num_prompts": (1, MAX_PROMPTS),
    "input_len": (1, MAX_TOKENS),
    "output_len": (1, MAX_TOKENS),
    "prefix_len": (0, MAX_TOKENS),
    "suffix_len": (1, MAX_TOKENS),
    "num_prefixes": (1, MAX_PROMPTS),
    "max_concurrency": (1, 1 << 16),
    "num_warmups": (0, MAX_PROMPTS),
    "seed": (0, 2**32 - 1),
    "temperature": (0, 1000),
    "ready_check_timeout_sec": (0, DAY_S),
    "request_timeout_sec": (1, DAY_S),
}

# Dataset -> the lengths that it takes, with their defaults, which are vLLM's. What is not here, it does not take.
_LENGTHS: Mapping[str, Mapping[str, int]] = {
    "random": {"input_len": 1024, "output_len": 128, "prefix_len": 0},
    "sharegpt": {"output_len": 0},
    "prefix_repetition": {"prefix_len": 256, "suffix_len": 256, "num_prefixes": 10, "output_len": 128},
}
_LENGTH_NAMES = ("input_len", "output_len", "prefix_len", "suffix_len", "num_prefixes")


@dataclass(frozen=True)
class LoadTest:
    """Which requests to send where, and when. Everything is checked here.

    Args:
        base_url: the server, such as http://127.0.0.1:8000; a /v1 at its end may be there or not.
        endpoint: the path of completions or of chat completions.
        model: its name on the server; None is the first that /v1/models lists.
        api_key: sent as a bearer token.
        dataset_name: "random", "sharegpt" or "prefix_repetition".
        dataset_path: of sharegpt, its JSON file.
        num_prompts: requests to send.
        input_len, output_len: tokens of a prompt and of an answer (random: 1024 and 128; sharegpt: as in the file).
        random_range_ratio: lengths vary from (1 - r) to (1 + r) times theirs, 0 <= r < 1.
        prefix_len, suffix_len, num_prefixes: prefix_repetition's; random puts one prefix of prefix_len before all prompts.
        request_rate: requests a second; infinity sends all at once.
        burstiness: shape of the gamma distribution of the gaps: 1 is a Poisson process, less is burstier.
        max_concurrency: requests in flight at most; None is any number.
        num_warmups: requests before the measured ones.
        ignore_eos: generate up to output_len whatever the model says; None: yes for prompts of random words.
        temperature: 0 is greedy.
        extra_body: further fields of each request's body.
        goodput: milliseconds that a request's ttft, tpot and e2el may take to be counted as good.
        percentile_metrics, metric_percentiles: what the report shows.
        seed: for the same prompts and arrivals again.
        ready_check_timeout_sec: how long to wait for the server; 0 doesn't check.
        request_timeout_sec: a request that takes longer has failed.

    Raises:
        OptionError: naming the field and the fix.
    """

    base_url: str = "http://127.0.0.1:8000"
    endpoint: str = "/v1/completions"
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    dataset_name: str = "random"
    dataset_path: str | Path | None = None
    num_prompts: int = 1000
    input_len: int | None = None
    output_len: int | None = None
    random_range_ratio: float = 0.0
    prefix_len: int | None = None
    suffix_len: int | None = None
    num_prefixes: int | None = None
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    num_warmups: int = 1
    ignore_eos: bool | None = None
    temperature: float = 0.0
    extra_body: Mapping[str, object] | None = None
    goodput: Mapping[str, float] | None = None
    percentile_metrics: tuple[str, ...] = ("ttft", "tpot", "itl")
    metric_percentiles: tuple[float, ...] = (99.0,)
    seed: int = 0
    ready_check_timeout_sec: float = 60
    request_timeout_sec: float = 6 * 3600

    def __post_init__(self) -> None:
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise _bad(name, f"is {value}, not from {lowest} to {highest}", "give one in that range")
        if not 0 <= self.random_range_ratio < 1:
            raise _bad("random_range_ratio", f"is {self.random_range_ratio}, not from 0 to below 1", "give one such as 0.5")
        for name in ("request_rate", "burstiness"):
            if not getattr(self, name) > 0:
                raise _bad(name, f"is {getattr(self, name)}, not above 0", "give a positive number, or inf")
        self._check_server()
        self._check_dataset()
        self._check_report()

    @property
    def is_chat(self) -> bool:
        """True if requests are chats."""
        return self.endpoint.rstrip("/").endswith("/chat/completions")

    @property
    def ignores_eos(self) -> bool:
        """True if answers go on to their full length."""
        return self.dataset_name != "sharegpt" if self.ignore_eos is None else self.ignore_eos

    def length(self, name: str) -> int:
        """Of the lengths, one as given, else the dataset's default; 0 stands for the dataset's own."""
        given = getattr(self, name)
        return int(_LENGTHS[self.dataset_name][name] if given is None else given)

    def _check_server(self) -> None:
        fix = "give one such as http://127.0.0.1:8000"
        try:
            url = urlsplit(self.base_url)
            is_fine = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not url.query and not url.fragment
        except ValueError:
            is_fine = False
        if not is_fine or not _is_token(self.base_url):
            raise _bad("base_url", f"{self.base_url!r:.80} is not the address of a server", fix)
        if not _is_token(self.endpoint) or not self.endpoint.startswith("/") or not self.endpoint.rstrip("/").endswith("completions"):
            fix = "give /v1/completions or /v1/chat/completions"
            raise _bad("endpoint", f"{self.endpoint!r:.80} is not the path of completions", fix)
        if self.api_key is not None and not _is_token(self.api_key):
            raise _bad("api_key", "has characters that no header may hold", "check how it was copied")

    def _check_dataset(self) -> None:
        if self.dataset_name not in DATASETS:
            raise _bad("dataset_name", f"{self.dataset_name!r:.80} is unknown", f"choose from {', '.join(DATASETS)}")
        takes = _LENGTHS[self.dataset_name]
        for name in _LENGTH_NAMES:
            if getattr(self, name) is not None and name not in takes:
                known = ", ".join(sorted(map(_option, takes)))
                raise _bad(name, f"means nothing to the dataset {self.dataset_name}", f"it takes {known}")
        if (self.dataset_path is not None) != (self.dataset_name == "sharegpt"):
            problem = "is missing" if self.dataset_path is None else f"means nothing to the dataset {self.dataset_name}"
            raise _bad("dataset_path", problem, "the dataset sharegpt, and no other, reads a JSON file")

    def _check_report(self) -> None:
        if not self.percentile_metrics or not set(self.percentile_metrics) <= set(METRICS):
            problem = f"{','.join(self.percentile_metrics)!r:.80} holds an unknown metric"
            raise _bad("percentile_metrics", problem, f"choose from {', '.join(METRICS)}")
        if not self.metric_percentiles or not all(0 <= p <= 100 for p in self.metric_percentiles):
            raise _bad("metric_percentiles", f"{self.metric_percentiles} are not all from 0 to 100", "give numbers such as 50,90,99")
        for name, milliseconds in (self.goodput or {}).items():
            if name not in OBJECTIVES or not milliseconds >= 0:
                fix = f"give milliseconds for {', '.join(OBJECTIVES)}, such as ttft:500"
                raise _bad("goodput", f"'{name}:{milliseconds}' is no objective", fix)


def _is_token(text: str) -> bool:
    """True if `text` may stand in a request's head."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _option(name: str) -> str:
    return name.replace("_", "-")


def _bad(name: str, problem: str, fix: str) -> OptionError:
    assert name in {item.name for item in fields(LoadTest)}
    return OptionError(problem, field=_option(name), fix=fix)
