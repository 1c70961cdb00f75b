"""`cupola.serve`: a server from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.device.memory import check_utilization, parse_bytes
from cupola.runtime.engine.attention_sinks import choose_sink_window
from cupola.runtime.engine.engine import EngineConfig
from cupola.runtime.engine.state_manager import CHECKPOINT_INTERVAL
from cupola.runtime.errors import OptionError
from cupola.runtime.server import descriptors
from cupola.runtime.server import messages as m
from cupola.runtime.server.app import build_app
from cupola.runtime.server.cascade import NUM_TOKENS, THRESHOLD, Cascade, CascadeRule
from cupola.runtime.server.connection import Limits, connection_type
from cupola.runtime.server.hosts import ANY, check_hosts, is_loopback
from cupola.runtime.server.logs import LogFormat, log, set_up_logs
from cupola.runtime.server.service import ServerConfig, Service

SEND_BUFFER_BYTES = 256 << 10  # of a connection: the system's own choice grows to megabytes before a client shows that it reads nothing
LAST_SECONDS = 2.0  # for requests to say that they were ended


def serve(
    artifact: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | Sequence[str] | None = None,
    served_model_name: str | Sequence[str] | None = None,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 512,
    max_num_mixed_prefill_tokens: int = 192,
    kv_memory: int | str | None = None,
    memory_budget: int | str | None = None,
    gpu_memory_utilization: float | None = None,
    swap_memory: int | str = 0,
    swap_folder: str | Path | None = None,
    cache_folder: str | Path | None = None,
    cache_size: int | str = "10GB",
    enable_prefix_caching: bool = True,
    seed: int | None = None,
    max_logprobs: int = 20,
    num_scheduler_steps: int = 8,
    attention_sinks: int | None = None,
    attention_window: int | None = None,
    checkpoint_interval: int = CHECKPOINT_INTERVAL,
    speculative: str | None = None,
    max_tokens_per_second: float | None = None,
    num_threads: int | None = None,
    power_saver: bool = False,
    device: str | None = None,
    max_queue: int = 256,
    request_timeout: float = 600.0,
    shutdown_timeout: float = 30.0,
    send_timeout: float = 60.0,
    stall_timeout: float = 20.0,
    read_timeout: float = 30.0,
    max_connections: int = 1024,
    ignored_fields: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] = (),
    root_path: str = "",
    ssl_certfile: str | Path | None = None,
    ssl_keyfile: str | Path | None = None,
    sse_keep_alive: float = 30.0,
    chat_template: str | Path | None = None,
    log_format: LogFormat = "text",
    cascade: str | Path | None = None,
    cascade_threshold: float = THRESHOLD,
    cascade_tokens: int = NUM_TOKENS,
) -> None:
    """Serves an artifact over HTTP until SIGINT or SIGTERM; a second one does not wait for requests to finish.

    Args:
        artifact: its folder.
        port: 0 takes a free one, which the log names.
        api_key: what clients must send as `Authorization: Bearer …`, or several of which they must send one.
        served_model_name: how requests may call the model, a name or several; by default as the artifact's folder is called.
        max_queue: sequences that may wait beyond those that run; more are refused with 429.
        request_timeout: seconds that a request may take.
        shutdown_timeout: seconds that unfinished requests get when the server is told to end.
        send_timeout: seconds after which a client that takes nothing of its answer is cut off.
        stall_timeout: seconds without a step, though there is work, after which `/health` says 503.
        read_timeout: seconds that a client may take to send a request; a body may take longer, as long as a kilobyte comes each second.
        max_connections: clients that may be connected. Beyond it the one that was idle for longest is let go, or the new one gets a 503.
        ignored_fields: names of request fields that clients send and that are to be ignored; other fields that are not known are refused.
        allowed_origins: of web pages that may use the server from a browser, such as "https://example.org"; "*" is all, none the default.
        allowed_hosts: names that clients may reach the server by, such as "llm.example.org", "*.example.org" or "*". By default any, but
            on a loopback address this machine's own alone, which are always allowed: web pages might pass theirs off as one of them.
        root_path: the path under which a proxy shows the server, such as "/llm", whether or not the proxy takes it off.
        ssl_certfile, ssl_keyfile: files in PEM, for HTTPS. The certificate's file may hold the key too.
        sse_keep_alive: seconds after which a stream without anything new sends a comment, so that no proxy ends it; 0 is never.
        chat_template: a file with a template in Jinja that stands in for the model's own.
        log_format: "text" or "json".
        cascade: the folder of a larger model's artifact, which answers in place of the first one where that is not sure. It has an engine
            of its own, with the same options; its chat template and its generation defaults are its own.
        cascade_threshold: the least mean log-probability of an answer's first `cascade_tokens` tokens with which the first model is sure.

    The others are `LLM`'s.

    Raises:
        ArtifactError: if the artifact is damaged or for another machine.
        OptionError: if an argument is out of range, or the address can't be had.
    """
    folder, rule = Path(artifact), CascadeRule(cascade_threshold, cascade_tokens)
    # Refused here, before a process starts.
    engine = EngineConfig(
        max_num_seqs, max_num_batched_tokens, enable_prefix_caching, seed, max_logprobs, max_num_mixed_prefill_tokens,
        num_scheduler_steps, attention_sinks, attention_window, checkpoint_interval, speculative,
        max_tokens_per_second=max_tokens_per_second, num_threads=num_threads, power_saver=power_saver,
    )  # fmt: skip
    if kv_memory is not None:
        parse_bytes(kv_memory, "kv_memory")
    if memory_budget is not None:
        parse_bytes(memory_budget, "memory_budget")
    check_utilization(gpu_memory_utilization)
    parse_bytes(swap_memory, "swap_memory", lowest=0)
    parse_bytes(cache_size, "cache_size")
    config = ServerConfig(
        _tuple(served_model_name) or (folder.resolve().name,), _tuple(api_key), max_queue, request_timeout, shutdown_timeout, send_timeout,
        stall_timeout, ignored_fields=tuple(ignored_fields), allowed_origins=tuple(allowed_origins), root_path=root_path.rstrip("/"),
        chat_template=None if chat_template is None else Path(chat_template), sse_keep_alive=sse_keep_alive, read_timeout=read_timeout,
    )  # fmt: skip
    hosts = check_hosts(allowed_hosts)
    tls = check_tls(ssl_certfile, ssl_keyfile)
    opened, larger = Artifact.open(folder), None if cascade is None else Artifact.open(cascade)
    sinks = choose_sink_window(attention_sinks, attention_window, opened.manifest.model, opened.manifest.kv)
    start = m.Start(
        artifact=str(folder.resolve()),
        sha256=opened.sha256,
        config=engine,
        kv_memory=kv_memory,
        memory_budget=memory_budget,
        gpu_memory_utilization=gpu_memory_utilization,
        swap_memory=swap_memory,
        swap_folder=None if swap_folder is None else str(Path(swap_folder).resolve()),
        cache_folder=None if cache_folder is None else str(Path(cache_folder).resolve()),
        cache_size=cache_size,
        device=device,
    )
    with listen(host, port) as listener:
        set_up_logs(log_format)
        if sinks:
            log.info(sinks.note)
        if not hosts and not is_loopback(listener.getsockname()[0]):
            hosts = (ANY,)
        config = dataclasses.replace(config, allowed_hosts=hosts, max_connections=descriptors.max_connections(max_connections))
        asyncio.run(_serve(_service(opened, start, config, larger, rule), listener, tls))


def _service(opened: Artifact, start: m.Start, config: ServerConfig, larger: Artifact | None, rule: CascadeRule) -> Service:
    """A service of one model or, with a larger one, a cascade of both."""
    if larger is None:
        return Service(opened, start, config)
    name = larger.path.resolve().name
    if name in config.served_model_names:
        raise OptionError(f"{name!r} is called as the first model is", field="cascade", fix="give the first another served_model_name")
    own = dataclasses.replace(config, served_model_names=(name,), stands_in_for=config.served_model_names, chat_template=None)
    started = msgspec.structs.replace(start, artifact=str(larger.path.resolve()), sha256=larger.sha256)
    return Cascade(opened, start, config, Service(larger, started, own), rule)


def _tuple(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One, several or none as a tuple."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True)
class Tls:
    """Files in PEM; without a key file, the certificate's has the key."""

    certfile: str
    keyfile: str | None


def check_tls(certfile: str | Path | None, keyfile: str | Path | None) -> Tls | None:
    """The files of HTTPS, which were read once; None for plain HTTP. Raises OptionError."""
    if certfile is None:
        if keyfile is not None:
            raise OptionError("is given without ssl_certfile", field="ssl_keyfile", fix="give both")
        return None
    tls = Tls(str(certfile), None if keyfile is None else str(keyfile))
    try:  # a password that is wrong, for OpenSSL would ask for one
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certfile, tls.keyfile, password=lambda: "")
    except (OSError, ValueError) as error:
        fix = "give a certificate and its key in PEM, the key without a password"
        raise OptionError(f"{tls.certfile}, {tls.keyfile}: can't be used: {error}", field="ssl_certfile", fix=fix) from None
    return tls


async def _serve(service: Service, listener: socket.socket, tls: Tls | None) -> None:
    config = uvicorn.Config(
        build_app(service),
        http=connection_type(Limits(service.config.send_timeout, service.config.read_timeout, service.config.max_connections)),
        backlog=descriptors.ACCEPTED_AT_ONCE,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=65,
        ssl_certfile=None if tls is None else tls.certfile,
        ssl_keyfile=None if tls is None else tls.keyfile,
    )
    server = Server(config, service)
    host, port = listener.getsockname()[:2]
    log.info("listening", extra={"fields": {"url": f"http{'s' if tls else ''}://{host}:{port}", "model": service.config.served_model_name}})
    stop = asyncio.create_task(_stop_on_failure(server, service))
    await server.serve(sockets=[listener])
    stop.cancel()
    if server.force_exit:  # uvicorn then leaves the lifespan's end out
        await service.close()
    if service.failure is not None:
        raise service.failure
    log.info("stopped")


async def _stop_on_failure(server: uvicorn.Server, service: Service) -> None:
    await service.stopped.wait()
    server.should_exit = True


class Server(uvicorn.Server):
    """uvicorn's server, which ends with code 0 when it is told to, and tells the service that it is about to."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._in_a_hurry = service, asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM, on Windows Ctrl-Break too, and does not raise them again at the end."""
        handlers = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets requests finish, the second does not."""
        if self.should_exit:
            self._in_a_hurry.set()
        self.should_exit = self._service.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for requests, but not for ever: first they are told to end, then whoever takes no notice is left."""
        ending = asyncio.create_task(self._end())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._in_a_hurry.wait(), self._service.config.shutdown_timeout)
        self._service.give_up()
        await asyncio.sleep(LAST_SECONDS)
        self.force_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OptionError if the address can't be had."""
    if not 0 <= port < 2**16:
        raise OptionError(f"is {port}", field="port", fix="give a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = descriptors.Listener(family)
        # On Windows SO_REUSEADDR would let several programs listen at one address.
        listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        raise OptionError(f"{host}:{port} can't be had: {error}", field="host", fix="free it, or give another --host or --port") from None
    return listener
