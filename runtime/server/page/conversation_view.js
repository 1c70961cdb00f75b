// Draws the conversation. One element a message, kept while the message stays, so that screen readers hear only what is new.
import { copyButton, element, smallButton } from "./dom.js";
import { showMarkdown } from "./markdown.js";

const SLACK = 80; // pixels from the end within which the reader counts as being at the end

/** `actions`: { regenerate(), edit(), useKey(key) }, called from the buttons beside the messages. */
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
    node.setAttribute("aria-busy", String(isComing));
    const content = node.querySelector(".content");
    if (message.role === "user") content.textContent = message.content;
    else showMarkdown(content, message.content);
    node.querySelector(".note").textContent = message.note ?? "";
    node.querySelector(".error").replaceChildren(...(message.error ? this.errorNodes(message.error) : []));
    if (this.isFollowing) this.follow();
  }

  /** Goes to the end, and stays there while text comes. */
  follow() {
    this.isFollowing = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  messageNode(message) {
    const isUser = message.role === "user";
    const change = isUser ? smallButton("Edit", () => this.actions.edit()) : smallButton("Regenerate", () => this.actions.regenerate());
    change.classList.add("only-last");
    return element(
      "article",
      { className: `message ${message.role}` },
      element("h2", { className: "visually-hidden" }, isUser ? "You" : "Answer"),
      element("div", { className: "content" }),
      element("div", { className: "error", role: "alert" }),
      element("div", { className: "foot" }, element("span", { className: "note" }), copyButton(() => message.content), change),
    );
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
