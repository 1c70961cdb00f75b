// The list of conversations: search, open, rename, export, delete.
import { download, element, iconButton } from "./dom.js";

const PENCIL = "M3 13l.7-3L11 2.7 13.3 5 6 12.3z";
const ARROW = "M8 2.5v8M4.5 7.5 8 11l3.5-3.5M3 13.5h10";
const BIN = "M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.5 9h6l.5-9";

/** `actions`: { open(conversation), rename(conversation, name), remove(conversation) }. */
export class ConversationsView {
  constructor(panel, conversations, actions) {
    Object.assign(this, { panel, conversations, actions, list: panel.querySelector("ul"), search: panel.querySelector("input") });
    this.search.addEventListener("input", () => this.show());
    panel.querySelector("#export-all").addEventListener("click", () => {
      download("conversations.json", "application/json", JSON.stringify(conversations.search(""), null, 1));
    });
  }

  /** Draws the list; `open` is the conversation that is shown, `running` the ids of those whose answers are on their way. */
  show(open = this.open, running = this.running) {
    Object.assign(this, { open, running });
    const found = this.conversations.search(this.search.value);
    this.list.replaceChildren(...found.map((conversation) => this.entry(conversation)));
    this.panel.querySelector("#no-conversations").textContent = found.length ? "" : this.search.value ? "Nothing found." : "No conversations yet.";
    this.panel.querySelector("#export-all").disabled = this.conversations.byId.size === 0;
  }

  entry(conversation) {
    const { title } = conversation;
    const button = element("button", { type: "button", className: "title", title: `${title}\n${new Date(conversation.changed).toLocaleString()}` }, title);
    if (conversation.id === this.open.id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => this.actions.open(conversation));
    const item = element("li", { className: this.running.has(conversation.id) ? "running" : "" }, button);
    item.append(
      element(
        "span",
        { className: "tools" },
        iconButton(`Rename “${title}”`, PENCIL, () => this.rename(conversation, item)),
        iconButton(`Export “${title}”`, ARROW, () => download(`${fileName(title)}.md`, "text/markdown", conversation.toMarkdown())),
        iconButton(`Delete “${title}”`, BIN, () => confirm(`Delete “${title}”? It can't be brought back.`) && this.actions.remove(conversation)),
      ),
    );
    return item;
  }

  rename(conversation, item) {
    const input = element("input", { value: conversation.title, ariaLabel: "New name", maxLength: 200 });
    let isOver = false; // removing the field takes its focus, which would end this a second time
    const end = (isWanted) => {
      if (isOver) return;
      isOver = true;
      if (isWanted && input.value.trim() !== conversation.title) this.actions.rename(conversation, input.value.trim());
      this.show();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
      event.stopPropagation();
    });
    input.addEventListener("blur", () => end(true));
    item.replaceChildren(input);
    input.select();
  }
}

function fileName(title) {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50) || "conversation";
}
