// @ai-sdk/openai with its defaults: the Responses API, whose items the server keeps.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const model = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" })(name);
const question = "What is the capital of Japan? Answer in one sentence.";
const short = { model, temperature: 0, maxOutputTokens: 60 };
const passed = (check, seen) => console.log(JSON.stringify({ check, seen: String(seen).slice(0, 200) }));

const said = await generateText({ ...short, system: "Answer briefly.", prompt: question });
assert(said.text.includes("Tokyo"), said.text);
passed("chat", said.text);

const pieces = [];
for await (const piece of streamText({ ...short, system: "Answer briefly.", prompt: question }).textStream) pieces.push(piece);
assert(pieces.join("") === said.text && pieces.length > 3, pieces);
passed("stream", `${pieces.length} pieces`);

const calls = [];
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.string().max(30) }),
  execute: async ({ city }) => (calls.push(city), `It rains in ${city}.`),
});
const told = await generateText({
  ...short,
  prompt: "How is the weather in Oslo?",
  tools: { weather },
  stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
});
assert(calls.length > 0 && told.steps.length === 2 && told.text, calls);
passed("tool call", `weather(${calls[0]}), then: ${told.text}`);

const { object } = await generateObject({
  ...short,
  prompt: "What is the capital of France?",
  schema: z.object({ city: z.string().max(30), is_capital: z.boolean() }),
});
assert(typeof object.is_capital === "boolean");
passed("structured output", JSON.stringify(object));
