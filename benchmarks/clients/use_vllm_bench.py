"""The file of vLLM that times requests for `vllm bench serve`: its first token is the first text, as a client sees it by hand."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from checks import MODEL, URL, passed

FILE = Path(sys.prefix) / "files" / "vllm" / "benchmarks" / "lib" / "endpoint_request_func.py"
ROUNDS, NUM_TOKENS, TOLERANCE = 7, 16, 0.05
PROMPT = "Tell me what you know of the rivers of Europe. " * 40  # long enough for the first token to take its time


def load() -> ModuleType:
    """vLLM's file, without the rest of vLLM."""
    spec = importlib.util.spec_from_file_location("endpoint_request_func", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def salt(number: int) -> dict[str, Any]:
    """Fields that keep a request from finding its prompt in the prefix cache."""
    return {"cache_salt": f"round {number} {time.time()}", "temperature": 0}


async def by_vllm(vllm: ModuleType, number: int) -> Any:
    """One request, measured by vLLM's client."""
    url = f"{URL}/v1/chat/completions"
    asked = vllm.RequestFuncInput(
        prompt=PROMPT, api_url=url, prompt_len=0, output_len=NUM_TOKENS, model=MODEL, ignore_eos=True, extra_body=salt(number)
    )
    async with aiohttp.ClientSession() as session:
        output = await vllm.async_request_openai_chat_completions(asked, session)
    assert output.success and output.output_tokens == NUM_TOKENS and output.prompt_len > 100, output
    return output


def by_hand(number: int) -> float:
    """Seconds until the first text of the same request."""
    parts = urlsplit(URL)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    messages = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    body = {"model": MODEL, "messages": messages, "max_completion_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True, **salt(number)}
    begin = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    while line := response.readline():
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
            seconds = time.perf_counter() - begin
            response.read()
            return seconds
    raise AssertionError("there was no text")


def main() -> None:
    """Both in turns; the medians may differ by 5 %."""
    vllm = load()
    measured = [(asyncio.run(by_vllm(vllm, i)), by_hand(ROUNDS + i)) for i in range(-1, ROUNDS)][1:]  # the first warms up
    theirs, ours = statistics.median(output.ttft for output, _ in measured), statistics.median(seconds for _, seconds in measured)
    assert abs(theirs / ours - 1) < TOLERANCE, (
        f"vLLM's client saw the first token after {theirs:.4f} s, a client by hand after {ours:.4f} s"
    )
    passed("time to first token", f"{1000 * theirs:.0f} ms, {1000 * ours:.0f} ms by hand")
    passed("tokens", f"{measured[0][0].output_tokens} after {measured[0][0].prompt_len}")


main()
