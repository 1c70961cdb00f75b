// The conversation: what was said, kept in the browser, and what of it the model gets to read.
import { load, save } from "./storage.js";

const NAME = "conversation";

/**
 * Messages are { role: "user" | "assistant", content } and, for an answer, `note` (how it ended, its figures) and
 * `error` ({ kind, message }) where it came to nothing or broke off.
 */
export class Conversation {
  constructor() {
    this.messages = load(NAME, [], isConversation);
  }

  /** Adds a question and an answer to come, in the place of all from `from` on; gives the answer. */
  ask(question, from = this.messages.length) {
    this.messages.length = from;
    const answer = { role: "assistant", content: "" };
    this.messages.push({ role: "user", content: question }, answer);
    return answer;
  }

  /** The place of the last question, or -1. */
  get lastQuestion() {
    return this.messages.findLastIndex((message) => message.role === "user");
  }

  clear() {
    this.messages = [];
    this.keep();
  }

  keep() {
    return save(NAME, this.messages);
  }

  /** What the API is sent. Questions that got no answer are left out, as templates want the two sides in turns; the last one stays. */
  toSend(system) {
    const turns = [];
    for (let i = 0; i < this.messages.length; i += 2) {
      const [question, answer] = this.messages.slice(i, i + 2);
      const isLast = i + 2 >= this.messages.length;
      if (isLast) turns.push(question);
      else if (answer.content) turns.push(question, answer);
    }
    const messages = turns.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...messages] : messages;
  }
}

function isConversation(value) {
  return Array.isArray(value) && value.length % 2 === 0 && value.every((message, i) => isMessage(message, i % 2 ? "assistant" : "user"));
}

function isMessage(message, role) {
  return message?.role === role && typeof message.content === "string";
}
