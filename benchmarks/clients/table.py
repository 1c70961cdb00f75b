"""The clients: what each is made of, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """One client of the server.

    Args:
        name: as the table shows it.
        interface: the endpoint that it uses, and how it was asked to.
        script: the file here that uses it.
        packages: what pip or npm installs, the client itself first; none for what the machine has.
        files: of a package's wheel that is too heavy to install: its name, and the file that is needed.
    """

    name: str
    interface: str
    script: str
    packages: tuple[str, ...] = ()
    files: tuple[str, str] | None = None


CLIENTS = (
    Client("openai-agents", "`/v1/responses`, its default", "use_openai_agents.py", ("openai-agents",)),
    Client("@ai-sdk/openai", "`/v1/responses`, its default", "use_ai_sdk.mjs", ("@ai-sdk/openai", "ai", "zod")),
    Client("langchain-openai", "`/v1/responses`, `use_responses_api`", "use_langchain.py", ("langchain-openai",)),
    Client("instructor", "`/v1/responses`, `RESPONSES_TOOLS`", "use_instructor.py", ("instructor", "openai")),
    Client("anthropic", "`/v1/messages`", "use_anthropic.py", ("anthropic",)),
    Client("litellm", "`/v1/messages`, its Anthropic bridge", "use_litellm.py", ("litellm",)),
    Client("Java's HttpClient", "`/v1/chat/completions`, `Upgrade: h2c`", "UseHttpClient.java"),
    Client(
        "vLLM's benchmark client",
        "`/v1/chat/completions`, timed",
        "use_vllm_bench.py",
        ("aiohttp", "regex", "tqdm"),
        ("vllm", "vllm/benchmarks/lib/endpoint_request_func.py"),
    ),
)
