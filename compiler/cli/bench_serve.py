"""`cupola bench-serve`: how a server does under load."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cupola
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.progress import console_progress
from cupola.compiler.progress import SilentProgress
from cupola.runtime.environment import openai_api_key
from cupola.runtime.errors import EngineError, OptionError

if TYPE_CHECKING:
    from cupola import LoadReport

CHAT_ENDPOINT, COMPLETIONS_ENDPOINT = "/v1/chat/completions", "/v1/completions"
REFRESHES_PER_SECOND = 2  # ten took more of the CPU than a thousand tokens a second
BACKENDS = {"openai": COMPLETIONS_ENDPOINT, "vllm": COMPLETIONS_ENDPOINT, "openai-chat": CHAT_ENDPOINT}


def _panel(title: str) -> Any:
    def option(*names: str, help: str, **_others: Any) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=title, **_others)

    return option


_server, _load, _prompts = _panel("The server"), _panel("The load"), _panel("The prompts")
_requests, _results = _panel("The requests"), _panel("The results")

BaseUrl = Annotated[str | None, _server("--base-url", help="Its address (default: http://HOST:PORT).", show_default=False)]
Host = Annotated[str, _server("--host", help="Where it listens.")]
Port = Annotated[int, _server("--port", help="At which port.")]
Endpoint = Annotated[str | None, _server("--endpoint", help=f"{COMPLETIONS_ENDPOINT} (default) or {CHAT_ENDPOINT}.", show_default=False)]
Backend = Annotated[str | None, _server("--backend", help=f"vLLM's names for the endpoints: {', '.join(BACKENDS)}.", show_default=False)]
ModelName = Annotated[str | None, _server("--model", help="The model's name there (default: the first of /v1/models).", show_default=False)]
ApiKey = Annotated[str | None, _server("--api-key", help="Its key (default: $OPENAI_API_KEY).", show_default=False)]
ReadyTimeout = Annotated[float, _server("--ready-check-timeout-sec", help="Wait so long for it to be ready; 0 doesn't check.")]

NumPrompts = Annotated[int, _load("--num-prompts", help="Requests to send.")]
RequestRate = Annotated[float, _load("--request-rate", help="Requests a second, by a Poisson process; inf sends all at once.")]
Burstiness = Annotated[
    float, _load("--burstiness", help="Below 1, requests come in bursts; above, more evenly: the shape of a gamma distribution of gaps.")
]
MaxConcurrency = Annotated[
    int | None, _load("--max-concurrency", help="Requests in flight at most; others wait (default: any number).", show_default=False)
]
NumWarmups = Annotated[int, _load("--num-warmups", help="Requests before the measured ones, and in no figure.")]
RequestTimeout = Annotated[float, _load("--request-timeout-sec", help="A request that takes longer has failed.")]

DatasetName = Annotated[str, _prompts("--dataset-name", help="random, sharegpt or prefix_repetition.")]
DatasetPath = Annotated[Path | None, _prompts("--dataset-path", help="sharegpt: its JSON file.", show_default=False)]
InputLen = Annotated[
    int | None, _prompts("--input-len", "--random-input-len", help="random: tokens of a prompt (default: 1024).", show_default=False)
]
OutputLen = Annotated[
    int | None,
    _prompts(
        "--output-len", "--random-output-len", "--sharegpt-output-len", "--prefix-repetition-output-len",
        help="Tokens to generate (default: 128; sharegpt: as many as the file's answer has).", show_default=False,
    ),
]  # fmt: skip
RangeRatio = Annotated[
    float, _prompts("--random-range-ratio", help="random: both lengths vary evenly, by this share up and down; below 1.")
]
PrefixLen = Annotated[
    int | None,
    _prompts(
        "--prefix-len", "--prefix-repetition-prefix-len", "--random-prefix-len",
        help="prefix_repetition: tokens of a prefix (default: 256); random: of one before all prompts (default: 0).", show_default=False,
    ),
]  # fmt: skip
SuffixLen = Annotated[
    int | None,
    _prompts("--suffix-len", "--prefix-repetition-suffix-len", help="Tokens after a prefix (default: 256).", show_default=False),
]
NumPrefixes = Annotated[
    int | None, _prompts("--num-prefixes", "--prefix-repetition-num-prefixes", help="Prefixes (default: 10).", show_default=False)
]
Seed = Annotated[int, _prompts("--seed", help="For the same prompts and arrivals again.")]

IgnoreEos = Annotated[
    bool | None,
    _requests("--ignore-eos/--no-ignore-eos", help="Generate to the full length (default: yes, but not for sharegpt).", show_default=False),
]
Temperature = Annotated[float, _requests("--temperature", help="0 takes the most likely token.")]
ExtraBody = Annotated[
    str | None, _requests("--extra-body", help="""Further fields of each request, such as '{"top_p": 0.9}'.""", show_default=False)
]

Goodput = Annotated[
    list[str] | None,
    _results(
        "--goodput", metavar="NAME:MS …", show_default=False,
        help="Also count the requests a second that meet every objective, such as ttft:500 tpot:50 e2el:9000.",
    ),
]  # fmt: skip
PercentileMetrics = Annotated[str, _results("--percentile-metrics", help="What to show: of ttft, tpot, itl, e2el.")]
MetricPercentiles = Annotated[str, _results("--metric-percentiles", help="Which percentiles, such as 50,90,99.")]
SaveResult = Annotated[bool, _results("--save-result", help="Save the figures as JSON, with vLLM's keys.")]
SaveDetailed = Annotated[bool, _results("--save-detailed", help="With times and text of every request.")]
ResultDir = Annotated[Path | None, _results("--result-dir", help="Save them there (default: here).", show_default=False)]
ResultFilename = Annotated[
    str | None, _results("--result-filename", help="By this name (default: one made of rate, model and date).", show_default=False)
]
Plot = Annotated[
    Path | None, _results("--plot", help="Draw latencies, and load over time, into a PNG, SVG or PDF file.", show_default=False)
]
DisableProgress = Annotated[bool, _results("--disable-tqdm", help="Show no progress.")]


def bench_serve(
    context: typer.Context,
    base_url: BaseUrl = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    endpoint: Endpoint = None,
    backend: Backend = None,
    model: ModelName = None,
    api_key: ApiKey = None,
    ready_check_timeout_sec: ReadyTimeout = 60,
    num_prompts: NumPrompts = 1000,
    request_rate: RequestRate = float("inf"),
    burstiness: Burstiness = 1.0,
    max_concurrency: MaxConcurrency = None,
    num_warmups: NumWarmups = 1,
    request_timeout_sec: RequestTimeout = 6 * 3600,
    dataset_name: DatasetName = "random",
    dataset_path: DatasetPath = None,
    input_len: InputLen = None,
    output_len: OutputLen = None,
    random_range_ratio: RangeRatio = 0.0,
    prefix_len: PrefixLen = None,
    suffix_len: SuffixLen = None,
    num_prefixes: NumPrefixes = None,
    seed: Seed = 0,
    ignore_eos: IgnoreEos = None,
    temperature: Temperature = 0.0,
    extra_body: ExtraBody = None,
    goodput: Goodput = None,
    percentile_metrics: PercentileMetrics = "ttft,tpot,itl",
    metric_percentiles: MetricPercentiles = "99",
    save_result: SaveResult = False,
    save_detailed: SaveDetailed = False,
    result_dir: ResultDir = None,
    result_filename: ResultFilename = None,
    plot: Plot = None,
    as_json: p.Json = False,
    disable_tqdm: DisableProgress = False,
) -> None:
    """Measure a server under load: any with OpenAI's API, by vLLM's definitions and with its options.

    TTFT is the time from sending a request to the first chunk of its answer, TPOT the time of each token after that, ITL the
    gaps between chunks, E2EL the time to the last chunk. Throughput is over the whole duration. Failed requests are in no
    latency; they are counted, with their reasons. What the load generator itself takes of the CPU is shown too: beside an
    engine on the same machine, it should be little.

    The datasets random and prefix_repetition make prompts of common words that are one token each, as the server's /tokenize
    confirms. Completions get them as token ids where the server takes those, so that lengths are exact; chats get texts, to
    which the server adds its template. Token counts in the results are the server's own (its usage). One request tries
    the server out and others warm it up before anything is measured; none of them begins as a measured one does.

    Examples: cupola bench-serve --num-prompts 100 --input-len 512 --output-len 128 --max-concurrency 16, or cupola bench-serve
    --request-rate 4 --goodput ttft:500 tpot:50 --save-result --plot load.png
    """
    test = cupola.LoadTest(
        base_url=f"http://{f'[{host}]' if ':' in host else host}:{port}" if base_url is None else base_url,
        endpoint=_endpoint(endpoint, backend),
        model=model,
        api_key=openai_api_key() if api_key is None else api_key,
        dataset_name=dataset_name,
        dataset_path=dataset_path,
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        random_range_ratio=random_range_ratio,
        prefix_len=prefix_len,
        suffix_len=suffix_len,
        num_prefixes=num_prefixes,
        request_rate=request_rate,
        burstiness=burstiness,
        max_concurrency=max_concurrency,
        num_warmups=num_warmups,
        ignore_eos=ignore_eos,
        temperature=temperature,
        extra_body=_extra_body(extra_body),
        goodput=_goodput(goodput, context.args),
        percentile_metrics=tuple(name.strip() for name in percentile_metrics.split(",")),
        metric_percentiles=_percentiles(metric_percentiles),
        seed=seed,
        ready_check_timeout_sec=ready_check_timeout_sec,
        request_timeout_sec=request_timeout_sec,
    )
    folder = _result_folder(result_dir) if save_result else None
    if plot is not None:
        cupola.LoadReport.check_plot(plot)
    report = _run(test, not disable_tqdm)
    typer.echo(json.dumps(report.as_dict(save_detailed)) if as_json else report.to_text())
    if folder is not None:
        report.save(folder / (result_filename or report.file_name()), save_detailed)
    if plot is not None:
        report.plot(plot)
    if not report.metrics.num_completed:
        raise EngineError("no request succeeded")


def _run(test: cupola.LoadTest, shows_progress: bool) -> LoadReport:
    progress = console_progress(REFRESHES_PER_SECOND) if shows_progress else SilentProgress()
    with progress.stage("Requests", test.num_prompts) as advance:
        report = cupola.run_load_test(test, lambda: advance(1))
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    return report


def _endpoint(endpoint: str | None, backend: str | None) -> str:
    if backend is not None and backend not in BACKENDS:
        raise OptionError(f"{backend!r:.60} is unknown", field="backend", fix=f"choose from {', '.join(BACKENDS)}")
    return endpoint or BACKENDS[backend or "openai"]


def _extra_body(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise OptionError(f"{text!r:.60} is no JSON object", field="extra-body", fix="""give one such as '{"top_p": 0.9}'""")
    return found


def _goodput(values: Sequence[str] | None, more: Sequence[str]) -> Mapping[str, float] | None:
    """Objectives, given several times, with commas, or with spaces as vLLM has them: those come as arguments."""
    if more and not values:
        raise OptionError(f"{more[0]!r:.60} is not an option", field="bench-serve", fix="--help has them all")
    pairs = [pair for value in [*(values or ()), *more] for pair in value.split(",")]
    found = {}
    for pair in pairs:
        name, _, milliseconds = pair.partition(":")
        try:
            found[name.strip()] = float(milliseconds)
        except ValueError:
            raise OptionError(f"{pair!r:.60} is no objective", field="goodput", fix="give some such as ttft:500 tpot:50") from None
    return found or None


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{text!r:.60} are no numbers", field="metric-percentiles", fix="give some such as 50,90,99") from None


def _result_folder(given: Path | None) -> Path:
    """Where results go, made before the test: nothing measured is lost to a mistyped path. Raises OptionError."""
    folder = given or Path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"can't be made: {error.strerror}", file=folder, field="result-dir", fix="name another folder") from None
    return folder
