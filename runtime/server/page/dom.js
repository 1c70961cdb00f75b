// Small helpers for making nodes.

/** A new element with these properties and children; text children are text, never HTML. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** A button that looks like a link in small print. */
export function smallButton(label, onClick) {
  const button = element("button", { type: "button", className: "small" }, label);
  button.addEventListener("click", onClick);
  return button;
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(text) {
  const button = smallButton("Copy", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // navigator.clipboard is only there on https and localhost
  }
}

function copyBySelection(text) {
  const area = element("textarea", { value: text, className: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
