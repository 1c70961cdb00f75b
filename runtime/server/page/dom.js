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

/** A button that is a drawing: `path` in a square of 16 units. Its label is for screen readers and shows when it is pointed at. */
export function iconButton(label, path, onClick) {
  const button = element("button", { type: "button", className: "icon", title: label, ariaLabel: label });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  button.append(svg);
  button.addEventListener("click", onClick);
  return button;
}

/** Hands the user a file with this text. */
export function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // by then it has been written
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
