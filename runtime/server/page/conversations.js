// All conversations, each under a name of its own in the browser's storage.
import { Conversation, areMessages, isConversation } from "./conversation.js";
import { load, names, remove, save } from "./storage.js";

const START = "chat.";
const ONLY_ONE = "conversation"; // where earlier versions kept the one conversation that they had

export class Conversations {
  constructor() {
    this.reload();
    const messages = load(ONLY_ONE, [], areMessages);
    if (messages.length && this.keep(new Conversation({ messages }))) remove(ONLY_ONE);
  }

  /** Reads storage anew, as another tab may have changed it; `open` stays the object that it is. */
  reload(open) {
    const kept = names(START).map((name) => load(name, null, isConversation));
    const conversations = kept.filter(Boolean).map((value) => (value.id === open?.id ? open : new Conversation(value)));
    this.byId = new Map(conversations.map((conversation) => [conversation.id, conversation]));
  }

  /** The conversation of this id, or a new one. */
  find(id) {
    return this.byId.get(id) ?? new Conversation();
  }

  /** Keeps a conversation in which something was said; false if the browser has no room for it. */
  keep(conversation) {
    if (!conversation.messages.length) return true;
    this.byId.set(conversation.id, conversation);
    return save(START + conversation.id, conversation);
  }

  remove(conversation) {
    this.byId.delete(conversation.id);
    remove(START + conversation.id);
  }

  /** Those that mention each word of `text`, the one that changed last first. */
  search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return [...this.byId.values()].filter((each) => each.mentions(words)).sort((a, b) => b.changed - a.changed);
  }
}
