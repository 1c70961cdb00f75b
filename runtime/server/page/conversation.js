// One conversation: what was said, and what of it the model gets to read.

const TITLE_LENGTH = 60;

/**
 * Messages are { role: "user" | "assistant", content } in turns and, for an answer, `reasoning` (what the model thought before it),
 * `thinkingSeconds`, `note` (how it ended, its figures) and `error` ({ kind, message }) where it came to nothing or broke off.
 */
export class Conversation {
  constructor({ id = newId(), name = "", changed = Date.now(), messages = [] } = {}) {
    Object.assign(this, { id, name, changed, messages });
  }

  /** The name that the user gave, or else the beginning of the first question. */
  get title() {
    const first = this.messages[0]?.content.trim().split(/\s+/).join(" ") ?? "New chat";
    return this.name || (first.length > TITLE_LENGTH ? `${first.slice(0, TITLE_LENGTH).replace(/\s\S*$/, "")}…` : first);
  }

  /** Adds a question and an answer to come, in the place of all from `from` on; gives the answer. */
  ask(question, from = this.messages.length) {
    this.messages.length = from;
    const answer = { role: "assistant", content: "" };
    this.messages.push({ role: "user", content: question }, answer);
    return answer;
  }

  /** The last answer, to be gone on with. */
  get lastAnswer() {
    return this.messages.at(-1);
  }

  /** The place of the last question, or -1. */
  get lastQuestion() {
    return this.messages.findLastIndex((message) => message.role === "user");
  }

  /**
   * What the API is sent. Questions that got no answer are left out, as templates want the two sides in turns; the last one stays. Its answer
   * is sent only to be continued.
   */
  toSend(system, isContinuing = false) {
    const turns = [];
    for (let i = 0; i < this.messages.length; i += 2) {
      const [question, answer] = this.messages.slice(i, i + 2);
      const isLast = i + 2 >= this.messages.length;
      if (isLast && !isContinuing) turns.push(question);
      else if (answer.content) turns.push(question, answer);
    }
    const messages = turns.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...messages] : messages;
  }

  /** Whether `words` (in lower case) all stand somewhere in the title or in what was said. */
  mentions(words) {
    const texts = [this.title, ...this.messages.map((message) => message.content)].map((text) => text.toLowerCase());
    return words.every((word) => texts.some((text) => text.includes(word)));
  }

  /** The conversation as a Markdown document. */
  toMarkdown() {
    const parts = this.messages.filter(({ content }) => content).map(({ role, content }) => `## ${role === "user" ? "You" : "Answer"}\n\n${content}\n`);
    return [`# ${this.title}\n`, ...parts].join("\n");
  }
}

/** Whether a value from storage is what `new Conversation` takes. */
export function isConversation(value) {
  return typeof value?.id === "string" && typeof value.name === "string" && typeof value.changed === "number" && areMessages(value.messages);
}

/** Whether a value is a list of messages in turns. */
export function areMessages(value) {
  return Array.isArray(value) && value.length % 2 === 0 && value.every((message, i) => isMessage(message, i % 2 ? "assistant" : "user"));
}

function isMessage(message, role) {
  return message?.role === role && typeof message.content === "string";
}

// crypto.randomUUID is only there on https and localhost.
function newId() {
  return Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
}
