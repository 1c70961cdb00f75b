// The panel of parameters. What is left empty is not sent, and the server's default holds.
import { element } from "./dom.js";
import { load, save } from "./storage.js";

// The field's names in the API, its label, the bounds that the browser checks, and a line of explanation.
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.01, hint: "0 always takes the likeliest token; higher is more varied." },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, hint: "Only the likeliest tokens that together have this probability." },
  { name: "top_k", label: "Top k", min: 1, max: 100000, step: 1, hint: "Only this many of the likeliest tokens." },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 1000000, step: 1, hint: "The answer ends after this many at the latest." },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 53 - 1, step: 1, hint: "The same seed gives the same answer again." },
];

/** The form's life: `values()` and `system()` for the API, `isValid()` with the browser's own complaint. */
export function parametersForm(form) {
  const kept = load("parameters", {}, (value) => value !== null && typeof value === "object");
  document.querySelector("#parameter-fields").append(...FIELDS.map(fieldNode));
  const inputs = new Map([...FIELDS.map(({ name }) => name), "system"].map((name) => [name, form.elements[name]]));
  for (const [name, input] of inputs) input.value = typeof kept[name] === "string" ? kept[name] : "";

  const keep = () => save("parameters", Object.fromEntries([...inputs].map(([name, input]) => [name, input.value])));
  form.addEventListener("input", keep);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector("#reset-parameters").addEventListener("click", () => {
    for (const input of inputs.values()) input.value = "";
    keep();
  });

  return {
    isValid: () => form.reportValidity(),
    values: () => Object.fromEntries(FIELDS.filter(({ name }) => inputs.get(name).value !== "").map(({ name }) => [name, inputs.get(name).valueAsNumber])),
    system: () => inputs.get("system").value.trim(),
  };
}

function fieldNode({ name, label, min, max, step, hint }) {
  const input = element("input", { type: "number", id: `parameter-${name}`, name, min, max, step, placeholder: "default", inputMode: "decimal" });
  input.setAttribute("aria-describedby", `hint-${name}`);
  return element(
    "div",
    { className: "field" },
    element("label", { htmlFor: input.id }, label),
    input,
    element("p", { className: "hint", id: `hint-${name}` }, hint),
  );
}
