// One answer on its way: the request, the text as it comes, the stop, and the line of figures under it.
import { ServerError, streamChat } from "./api.js";

/** Adds to `answer` what the server says; calls `onChange` whenever it has grown. Never throws: what goes wrong becomes `answer.error`. */
export async function fillAnswer(answer, request, signal, onChange) {
  const clock = { start: performance.now() };
  let usage;
  let finishReason;
  delete answer.error;
  delete answer.note;
  try {
    for await (const chunk of streamChat(request, signal)) {
      usage = chunk.usage ?? usage;
      finishReason = chunk.finishReason ?? finishReason;
      if (!chunk.text && !chunk.reasoning) continue;
      clock.last = performance.now();
      clock.first ??= clock.last;
      if (chunk.reasoning) answer.reasoning = (answer.reasoning ?? "") + chunk.reasoning;
      if (chunk.text && !answer.content && answer.reasoning) answer.thinkingSeconds = (clock.last - clock.first) / 1000;
      answer.content += chunk.text;
      onChange();
    }
    answer.note = note(usage, finishReason, clock);
  } catch (error) {
    if (signal.aborted) answer.note = answer.content ? "Stopped" : "Stopped before the answer began";
    else if (error instanceof ServerError) answer.error = { kind: error.kind, message: error.message };
    else throw error;
  }
}

function note(usage, finishReason, clock) {
  const parts = [];
  if (finishReason === "length") parts.push("Ended at the limit of tokens");
  if (!usage) return parts.join(" · ");
  parts.push(`${usage.completion_tokens} tokens`);
  const seconds = (clock.last - clock.first) / 1000;
  if (usage.completion_tokens > 1 && seconds > 0) parts.push(`${Math.round((usage.completion_tokens - 1) / seconds)} a second`);
  if (clock.first) parts.push(`first after ${((clock.first - clock.start) / 1000).toFixed(2)} s`);
  const cached = usage.prompt_tokens_details?.cached_tokens;
  parts.push(`prompt of ${usage.prompt_tokens}${cached ? `, ${cached} cached` : ""}`);
  return parts.join(" · ");
}
