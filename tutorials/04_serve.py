"""Serving: a model behind OpenAI's API, for any program that speaks it.

    pip install openai
    python tutorials/04_serve.py [ARTIFACT]      # ARTIFACT: the folder of a model that you have compiled already

In a terminal of your own, `cupola serve smollm2 --quant auto` does what the first part does here; then open http://127.0.0.1:8000 for a
page to chat on.
"""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai

import cupola
from cupola.runtime.environment import cache_folder

# --- 1. Serve ----------------------------------------------------------------------------------------------------------
#
# The server answers from its first second: /health says 503 while the model is loading, then 200. The engine runs in a
# process of its own, so that a long prompt never keeps the server from answering, and a crash of one is seen by the other.

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_folder() / "tutorials" / "smollm2"
if not folder.exists():
    print(f"Compiling smollm2 into {folder}; this takes a minute, once.", flush=True)
    cupola.compile("smollm2", quant="f32", out=folder, context=2048)

with socket.socket() as probe:  # a free port; you would take 8000
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
url = f"http://127.0.0.1:{port}"
command = [sys.executable, "-P", "-m", "cupola", "serve", str(folder), "--port", str(port), "--served-model-name", "smollm2"]
server = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # on standard error: a line of log for each request
while True:
    try:
        with urllib.request.urlopen(f"{url}/health") as response:
            print("The server is up:", response.read().decode())
            break
    except (urllib.error.URLError, ConnectionError):
        if server.poll() is not None:
            sys.exit("the server did not start")
        time.sleep(0.1)

try:
    # --- 2. curl -----------------------------------------------------------------------------------------------------------
    #
    # Nothing is needed but HTTP and JSON.

    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    body = {"model": "smollm2", "messages": question, "temperature": 0, "max_tokens": 48}
    print(f"\n$ curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}")
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    print("Answer:", answer["choices"][0]["message"]["content"])
    print("Usage:", answer["usage"])

    # --- 3. The openai client ----------------------------------------------------------------------------------------------
    #
    # Programs written for OpenAI need another base URL, and any key unless the server was given one (`--api-key`). Most
    # take both from the environment: OPENAI_BASE_URL and OPENAI_API_KEY. With LangChain it is
    #
    #     ChatOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", model="smollm2")

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    print("\nModels:", [model.id for model in client.models.list()])
    print("Streamed: ", end="")
    stream = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Name three colors."}], temperature=0, max_tokens=40, stream=True
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    # What OpenAI's API has no name for goes into `extra_body`, under vLLM's names.
    completion = client.completions.create(
        model="smollm2", prompt="Once upon a time", max_tokens=24, seed=1, extra_body={"top_k": 40, "min_p": 0.05}
    )
    print("Continued: Once upon a time" + completion.choices[0].text)

    # --- 4. Structure ------------------------------------------------------------------------------------------------------
    #
    # With a JSON schema the answer always parses, whatever the model would rather say: tokens that would break the schema are
    # never chosen. Whether what it says is true is another matter.

    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"enum": ["France", "Italy", "Spain"]}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Where does the Eiffel Tower stand? Answer in JSON."}],
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}},
    )
    print("\nIn JSON:", json.loads(reply.choices[0].message.content or ""))

    # --- 5. Tools ----------------------------------------------------------------------------------------------------------
    #
    # The model asks for a function, the program calls it and tells the result. A model of this size would rarely think of it
    # by itself, so it is told to; the arguments follow the function's schema as above.

    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
        },
    }
    conversation: list = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    asked = client.chat.completions.create(model="smollm2", messages=conversation, tools=[weather], tool_choice=choice, temperature=0)
    call = asked.choices[0].message.tool_calls[0]
    print("\nThe model calls:", call.function.name, call.function.arguments)
    conversation += [asked.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}]
    told = client.chat.completions.create(model="smollm2", messages=conversation, tools=[weather], temperature=0, max_tokens=40)
    print("Then it says:", told.choices[0].message.content)

    # --- 6. Look -----------------------------------------------------------------------------------------------------------
    #
    # /metrics is for Prometheus, under the names that vLLM uses. `cupola bench-serve --base-url URL` puts load on any server of
    # this kind and tells how long first tokens and the ones after them take.

    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    counts = [line for line in lines if line.startswith(("cupola:prompt_tokens_total", "cupola:generation_tokens_total"))]
    print("\nMetrics:", *counts, sep="\n    ")
finally:
    # SIGTERM lets requests finish (`--shutdown-timeout`), and refuses new ones.
    server.send_signal(signal.SIGTERM)
    print("\nThe server has ended with code", server.wait(timeout=60))
