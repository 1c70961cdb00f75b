// The server's API, and what its refusals mean in plain words. Addresses are relative, so that the page works under any prefix.
import { readEvents } from "./sse.js";

const KEY = "cupola.key";

/** What went wrong. `kind`: "key", "busy", "loading", "refused", "failed" or "network". */
export class ServerError extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

// The key lives as long as the tab: it is no part of the conversation that the browser keeps.
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => sessionStorage.setItem(KEY, key.trim()),
};

/** Names of the models that the server serves. */
export async function listModels() {
  const response = await call("v1/models");
  try {
    return (await response.json()).data.map((model) => model.id);
  } catch {
    throw new ServerError("failed", "What answers here doesn't speak OpenAI's API.");
  }
}

/** The server's figures, as Prometheus text. */
export async function readMetrics() {
  return (await call("metrics")).text();
}

/**
 * The sampling parameters that the model's own generation_config.json sets, or null where the server doesn't tell: then it is another server,
 * whose defaults are its own affair.
 */
export async function readModelDefaults() {
  try {
    return (await (await call("props")).json()).generation_config ?? null;
  } catch (error) {
    if (error instanceof ServerError && error.kind !== "refused") throw error;
    return null;
  }
}

/** Throws "loading" while the server isn't ready, and "network" when nobody answers. */
export async function checkHealth() {
  await call("health");
}

/**
 * Streams an answer: yields { text, reasoning, finishReason, usage } for each chunk, the last two where the server gave them.
 * `request` is the body of /v1/chat/completions; aborting `signal` closes the connection, by which the server knows to stop.
 */
export async function* streamChat(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await call("v1/chat/completions", { method: "POST", body, signal });
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError("failed", `The server failed: ${chunk.error.message}`);
      const choice = chunk.choices?.[0];
      const delta = choice?.delta ?? {};
      yield { text: delta.content ?? "", reasoning: delta.reasoning_content ?? "", finishReason: choice?.finish_reason, usage: chunk.usage };
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error;
    throw new ServerError("network", "The connection broke off in the middle of the answer.");
  }
  throw new ServerError("network", "The answer ended before it was complete.");
}

async function call(path, options = {}) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("network", "The server can't be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const said = await message(response);
  switch (response.status) {
    case 401:
    case 403:
      return new ServerError("key", apiKey.get() ? "The server did not accept this API key." : "This server asks for an API key.");
    case 429:
      return new ServerError("busy", `The server has as much to do as it takes on. Try again ${soon(response)}.`);
    case 502:
    case 503:
    case 504:
      return new ServerError("loading", `The server isn't ready; it may be loading its model, or shutting down. Try again ${soon(response)}.`);
  }
  if (response.status < 500) return new ServerError("refused", `The server refused the request: ${said}`);
  return new ServerError("failed", `The server failed: ${said}`);
}

function soon(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return seconds > 0 ? `in ${seconds} second${seconds === 1 ? "" : "s"}` : "in a moment";
}

async function message(response) {
  const status = `status ${response.status}`;
  try {
    return (await response.json()).error.message ?? status;
  } catch {
    return status; // not OpenAI's shape: something between us and the server answered
  }
}
