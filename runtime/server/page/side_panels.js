// The two panels beside the conversation: what was said before, at the left, and the parameters, at the right.
import { load, save } from "./storage.js";

const WIDE = "(min-width: 56rem)"; // narrower, a panel lies over the conversation
const NAMES = ["conversations", "panel"];

/** Opens and closes the panels by their buttons; on wide screens the list of conversations stays as the user left it. */
export function sidePanels() {
  const node = (name) => document.getElementById(name);
  const button = (name) => document.getElementById(`open-${name}`);
  const isOver = () => !matchMedia(WIDE).matches;

  function set(name, isOpen) {
    node(name).hidden = !isOpen;
    button(name).setAttribute("aria-expanded", String(isOpen));
    if (name === "conversations" && !isOver()) save("list", isOpen);
  }

  function open(name) {
    if (isOver()) for (const other of NAMES) set(other, false);
    set(name, true);
    node(name).querySelector("textarea, input").focus();
  }

  function close(name) {
    set(name, false);
    button(name).focus();
  }

  for (const name of NAMES) {
    button(name).addEventListener("click", () => (node(name).hidden ? open(name) : close(name)));
    node(name).querySelector(".close").addEventListener("click", () => close(name));
  }
  if (!isOver()) set("conversations", load("list", true, (value) => typeof value === "boolean"));
  return {
    open,
    /** Closes a panel that lies over the conversation. */
    closeIfOver: (name) => isOver() && !node(name).hidden && close(name),
    /** Closes the parameters, or the list where it lies over the conversation. */
    closeTop() {
      const name = NAMES.findLast((each) => !node(each).hidden && (each === "panel" || isOver()));
      if (name) close(name);
    },
  };
}
