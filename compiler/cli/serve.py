"""`cupola serve`: a model behind OpenAI's API."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cupola
from cupola.compiler.cli import answer
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.declare import Option
from cupola.compiler.options import short_name
from cupola.runtime.environment import api_key as api_key_of_environment
from cupola.runtime.errors import OptionError, UnsupportedError

LOG_FORMATS = ("text", "json")
Host = Annotated[str, Option("--host", help="The address to listen on; 0.0.0.0 is every one.")]
Port = Annotated[int, Option("--port", help="The port; 0 takes a free one.")]
ApiKey = Annotated[
    list[str] | None,
    Option("--api-key", help="What clients must send (default: $CUPOLA_API_KEY, else nothing); repeat it for more.", show_default=False),
]
Name = Annotated[
    list[str] | None,
    Option("--served-model-name", help="How requests call the model (default: its own name); repeat it for more.", show_default=False),
]
MaxSeqs = Annotated[int, Option("--max-num-seqs", help="Sequences that run together.")]
MaxTokens = Annotated[int, Option("--max-num-batched-tokens", help="Tokens of one step; longer prompts are computed in chunks.")]
MixedTokens = Annotated[
    int,
    Option("--max-num-mixed-prefill-tokens", help="Prompt tokens of a step in which other answers go on: more hold those up longer."),
]
CheckpointInterval = Annotated[
    int,
    Option("--checkpoint-interval", help="Prompt tokens from one copy of a recurrent model's state in the prefix cache to the next."),
]
SchedulerSteps = Annotated[
    int,
    Option("--num-scheduler-steps", help="Tokens of an answer that may come at once, within 16 ms, unless the host chooses them."),
]
KVMemory = Annotated[
    str | None,
    Option(
        "--kv-memory",
        help="Memory for K and V, such as 2GB (default: 1GB; on a GPU what --gpu-memory-utilization leaves).",
        show_default=False,
    ),
]
SwapMemory = Annotated[str, Option("--swap-memory", help="Memory for K and V of preempted answers, such as 1GB; 0 computes them again.")]
SwapFolder = Annotated[Path | None, Option("--swap-folder", help="A folder on a disk that stands in for that memory.", show_default=False)]
CacheFolder = Annotated[
    Path | None,
    Option("--cache-folder", help="A folder that keeps the K/V of prompts and answers for the next start.", show_default=False),
]
CacheSize = Annotated[str, Option("--cache-size", help="The most that such a folder may hold; what is longest out of use goes.")]
PrefixCaching = Annotated[bool, Option("--prefix-caching/--no-prefix-caching", help="Share the K/V of prompts that begin equally.")]
MaxQueue = Annotated[int, Option("--max-queue", help="Sequences that may wait; more are refused with 429.")]
MaxLogprobs = Annotated[int, Option("--max-logprobs", help="The most log-probabilities a token that may be asked for.")]
Timeout = Annotated[float, Option("--request-timeout", help="Seconds that a request may take.")]
Shutdown = Annotated[float, Option("--shutdown-timeout", help="Seconds that unfinished requests get after SIGTERM.")]
Send = Annotated[float, Option("--send-timeout", help="Seconds after which a client that takes nothing of its answer is cut off.")]
Stall = Annotated[float, Option("--stall-timeout", help="Seconds without a step after which /health says 503.")]
Read = Annotated[float, Option("--read-timeout", help="Seconds that a client may take to send a request.")]
Connections = Annotated[int, Option("--max-connections", help="Clients that may be connected.")]
IgnoredFields = Annotated[
    str, Option("--ignored-fields", help="Request fields to ignore, with commas between; other unknown ones are refused.")
]
AllowedOrigins = Annotated[
    list[str] | None,
    Option("--allowed-origins", help="Origins of web pages that may use the server, * for all; repeat it for more.", show_default=False),
]
AllowedHosts = Annotated[
    list[str] | None,
    Option(
        "--allowed-hosts",
        help="Names that clients may reach the server by (default: any; on a loopback address localhost); repeat it for more.",
        show_default=False,
    ),
]
RootPath = Annotated[str, Option("--root-path", help="The path under which a proxy shows the server, such as /llm.")]
CertFile = Annotated[Path | None, Option("--ssl-certfile", help="A certificate in PEM, for HTTPS.", show_default=False)]
KeyFile = Annotated[Path | None, Option("--ssl-keyfile", help="Its key in PEM.", show_default=False)]
KeepAlive = Annotated[float, Option("--sse-keep-alive", help="Seconds after which a silent stream sends a comment; 0 is never.")]
ChatTemplate = Annotated[
    Path | None, Option("--chat-template", help="A file with a template that stands in for the model's own.", show_default=False)
]
Cascade = Annotated[
    Path | None,
    Option(
        "--cascade",
        help="A larger model's artifact, which answers where MODEL is not sure.",
        metavar="LARGE",
        show_default=False,
    ),
]
Threshold = Annotated[
    float, Option("--cascade-threshold", help="MODEL is sure from this mean log-probability of an answer's first tokens on.")
]
CascadeTokens = Annotated[
    int, Option("--cascade-tokens", help="How many tokens those are: answers are held back until they came, or the answer's end.")
]
LogFormat = Annotated[str, Option("--log-format", help="text or json.")]


def serve_model(
    model: p.Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    served_model_name: Name = None,
    max_num_seqs: MaxSeqs = 16,
    max_num_batched_tokens: MaxTokens = 512,
    max_num_mixed_prefill_tokens: MixedTokens = 192,
    kv_memory: KVMemory = None,
    memory_budget: p.MemoryBudget = None,
    gpu_memory_utilization: p.GPUMemory = None,
    swap_memory: SwapMemory = "0",
    swap_folder: SwapFolder = None,
    cache_folder: CacheFolder = None,
    cache_size: CacheSize = "10GB",
    prefix_caching: PrefixCaching = True,
    seed: p.Seed = None,
    max_logprobs: MaxLogprobs = 20,
    num_scheduler_steps: SchedulerSteps = 8,
    max_queue: MaxQueue = 256,
    request_timeout: Timeout = 600.0,
    shutdown_timeout: Shutdown = 30.0,
    send_timeout: Send = 60.0,
    stall_timeout: Stall = 20.0,
    read_timeout: Read = 30.0,
    max_connections: Connections = 1024,
    ignored_fields: IgnoredFields = "",
    allowed_origins: AllowedOrigins = None,
    allowed_hosts: AllowedHosts = None,
    root_path: RootPath = "",
    ssl_certfile: CertFile = None,
    ssl_keyfile: KeyFile = None,
    sse_keep_alive: KeepAlive = 30.0,
    chat_template: ChatTemplate = None,
    log_format: LogFormat = "text",
    cascade: Cascade = None,
    cascade_threshold: Threshold = -0.3,
    cascade_tokens: CascadeTokens = 16,
    attention_sinks: p.AttentionSinks = None,
    attention_window: p.AttentionWindow = None,
    checkpoint_interval: CheckpointInterval = 512,
    speculative: p.Speculative = None,
    max_tokens_per_second: p.MaxTokensPerSecond = None,
    threads: p.Threads = None,
    power_saver: p.PowerSaver = False,
    device: p.Device = None,
    target: p.Target = None,
    quant: p.Quant = None,
    embedding: p.Embedding = None,
    kv_dtype: p.KVDtype = None,
    context: p.Context = None,
    block_size: p.BlockSize = None,
    max_batch: p.MaxBatch = None,
) -> None:
    """Serve a model over HTTP with OpenAI's API, and a chat page at /. A source is compiled first, once.

    Any OpenAI client works: base URL http://127.0.0.1:8000/v1, any key unless --api-key asks for one. /metrics is for Prometheus.
    """
    options = p.compile_options(target, quant, embedding, kv_dtype, context, block_size, max_batch)
    if log_format not in LOG_FORMATS:
        raise OptionError(f"is {log_format!r:.60}", field="log_format", fix=f"give one of {', '.join(LOG_FORMATS)}")
    cupola.check_speculative(speculative)
    keys = api_key or [key for key in [api_key_of_environment()] if key is not None]
    run_server, names = _server(), served_model_name or [_name(model)]

    def serve(folder: Path | str) -> None:
        run_server(
            folder, host=host, port=port, api_key=keys, served_model_name=names, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens, max_num_mixed_prefill_tokens=max_num_mixed_prefill_tokens,
            kv_memory=kv_memory, memory_budget=memory_budget, gpu_memory_utilization=gpu_memory_utilization,
            swap_memory=swap_memory, swap_folder=swap_folder, cache_folder=cache_folder, cache_size=cache_size,
            enable_prefix_caching=prefix_caching, seed=seed, max_logprobs=max_logprobs, num_scheduler_steps=num_scheduler_steps,
            attention_sinks=attention_sinks,
            attention_window=attention_window, checkpoint_interval=checkpoint_interval, speculative=speculative,
            max_tokens_per_second=max_tokens_per_second, num_threads=threads, power_saver=power_saver,
            device=device, max_queue=max_queue,
            request_timeout=request_timeout, shutdown_timeout=shutdown_timeout, send_timeout=send_timeout, stall_timeout=stall_timeout,
            read_timeout=read_timeout, max_connections=max_connections, ignored_fields=_split(ignored_fields),
            allowed_origins=_split(",".join(allowed_origins or [])), allowed_hosts=_split(",".join(allowed_hosts or [])),
            root_path=root_path, ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile, sse_keep_alive=sse_keep_alive,
            chat_template=chat_template, log_format="json" if log_format == "json" else "text",
            cascade=cascade, cascade_threshold=cascade_threshold, cascade_tokens=cascade_tokens,
        )  # fmt: skip

    answer.load_by(serve, model, options)
    gc.freeze()  # the process ends: collecting what its libraries leave behind would take it 0.4 s


def _server() -> Callable[..., None]:
    try:
        return cupola.serve
    except ModuleNotFoundError as error:
        problem = f"needs the package {error.name}, which isn't installed"
        raise UnsupportedError(problem, field="serve", fix="pip install 'cupola[serve]'") from None


def _split(given: str) -> list[str]:
    """The parts between commas."""
    return [part.strip() for part in given.split(",") if part.strip()]


def _name(model: str) -> str:
    """The name that requests may call a model by if nobody gave it one."""
    own = Path(model).resolve().name if p.is_artifact(model) else short_name(model)
    return re.sub(r"[^\w.:/@+-]", "-", own)
