// Draws the conversation. One element a message, kept while the message stays, so that screen readers hear only what is new.
import { copyButton, element, smallButton } from "./dom.js";
import { showMarkdown } from "./markdown.js";

const SLACK = 80; // pixels from the end within which the reader counts as being at the end

/**
 * `actions`, called from the buttons beside the messages: { regenerate(), goOn(), editQuestion(message), keepAnswer(message, text),
 * useKey(key) }.
 */
export class ConversationView {
  constructor(list, scroller, jump, actions) {
    Object.assign(this, { list, scroller, jump, actions, nodes: new Map(), isFollowing: true });
    scroller.addEventListener("scroll", () => {
      this.isFollowing = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < SLACK;
      jump.hidden = this.isFollowing;
    });
    jump.addEventListener("click", () => this.follow());
  }

  /** Shows these messages: new ones come at the end, and those that are gone go. */
  show(messages) {
    for (const [message, node] of this.nodes) {
      if (messages.includes(message)) continue;
      node.remove();
      this.nodes.delete(message);
    }
    for (const message of messages) {
      if (this.nodes.has(message)) continue;
      const node = this.messageNode(message);
      this.nodes.set(message, node);
      this.list.append(node);
      this.update(message);
    }
  }

  /** Draws a message that has changed. */
  update(message, isComing = false) {
    const node = this.nodes.get(message);
    node.classList.toggle("coming", isComing);
    node.classList.toggle("has-text", message.content !== "");
    node.setAttribute("aria-busy", String(isComing));
    const content = node.querySelector(".content");
    if (message.role === "user") content.textContent = message.content;
    else showMarkdown(content, message.content);
    this.showThinking(node, message, isComing);
    node.querySelector(".note").textContent = message.note ?? "";
    node.querySelector(".error").replaceChildren(...(message.error ? this.errorNodes(message.error) : []));
    if (this.isFollowing) this.follow();
  }

  /** What the model thought before its answer: folded, since it is long and not the answer. Whoever unfolds it sees it grow. */
  showThinking(node, message, isComing) {
    const details = node.querySelector(".thinking");
    if (!details) return;
    details.hidden = !message.reasoning;
    if (!message.reasoning) return;
    const isThinking = isComing && !message.content;
    details.classList.toggle("now", isThinking);
    const seconds = message.thinkingSeconds;
    details.querySelector("summary").textContent = isThinking ? "Thinking…" : seconds === undefined ? "Thought" : `Thought for ${seconds.toFixed(1)} s`;
    details.querySelector(".thought").textContent = message.reasoning.trim();
  }

  /** Goes to the end, and stays there while text comes. */
  follow() {
    this.isFollowing = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  messageNode(message) {
    const isUser = message.role === "user";
    const thinking = element("details", { className: "thinking", hidden: true }, element("summary", {}), element("div", { className: "thought" }));
    return element(
      "article",
      { className: `message ${message.role}` },
      element("h2", { className: "visually-hidden" }, isUser ? "You" : "Answer"),
      ...(isUser ? [] : [thinking]),
      element("div", { className: "content" }),
      element("div", { className: "error", role: "alert" }),
      element("div", { className: "foot" }, element("span", { className: "note" }), ...this.buttons(message, isUser)),
    );
  }

  buttons(message, isUser) {
    const copy = copyButton(() => message.content);
    copy.classList.add("with-text");
    if (isUser) return [copy, smallButton("Edit", () => this.actions.editQuestion(message))];
    const edit = smallButton("Edit", () => this.editAnswer(message));
    const goOn = smallButton("Continue", () => this.actions.goOn());
    const regenerate = smallButton("Regenerate", () => this.actions.regenerate());
    edit.classList.add("with-text");
    goOn.classList.add("with-text", "only-last");
    regenerate.classList.add("only-last");
    return [copy, edit, goOn, regenerate];
  }

  /** Lets the user change what the model said, in its place: what comes next then follows from that. */
  editAnswer(message) {
    const node = this.nodes.get(message);
    const area = element("textarea", { value: message.content, ariaLabel: "The answer" });
    const end = (isWanted) => {
      form.remove();
      node.classList.remove("edited");
      if (isWanted) this.actions.keepAnswer(message, area.value);
      this.update(message);
    };
    const save = element("button", { className: "primary" }, "Save");
    const form = element("form", { className: "answer-form" }, area, element("p", {}, save, smallButton("Leave it", () => end(false))));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(true);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
    });
    node.classList.add("edited");
    node.querySelector(".content").after(form);
    area.style.height = `${Math.min(area.scrollHeight + 4, innerHeight / 2)}px`;
    area.focus();
  }

  errorNodes(error) {
    const text = element("p", {}, error.message);
    if (error.kind === "key") return [text, keyForm((key) => this.actions.useKey(key))];
    return [text, smallButton("Try again", () => this.actions.regenerate())];
  }
}

/** A field for the server's API key. */
export function keyForm(onKey) {
  const input = element("input", { type: "password", name: "key", required: true, autocomplete: "off", placeholder: "API key", ariaLabel: "API key" });
  const form = element("form", { className: "key-form" }, input, element("button", { className: "primary" }, "Use this key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    onKey(input.value);
  });
  return form;
}
