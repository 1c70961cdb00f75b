// The panel of parameters. What is left empty is what the model's own configuration says, or else what suits a small model.
import { element } from "./dom.js";
import { load, save } from "./storage.js";

// The field's names in the API, its label, the bounds that the browser checks, and a line of explanation.
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.01, hint: "0 always takes the most probable token; higher is more varied." },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, hint: "Only the most probable tokens that together have this probability." },
  { name: "top_k", label: "Top k", min: 1, max: 100000, step: 1, hint: "Only this many of the most probable tokens." },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, hint: "Only tokens with this share of the most probable token's probability." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 2, step: 0.01, hint: "Above 1, tokens that came before become less probable." },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.01, hint: "Taken off the logits of tokens that the answer has already." },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.01, hint: "Taken off as often as the answer has the token." },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 1000000, step: 1, hint: "The answer ends after this many at the latest, and can be continued." },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 53 - 1, step: 1, hint: "The same seed gives the same answer again." },
];
// At a temperature of 1 small models ramble. An answer that does not find its end should not hold a small machine for long.
const SAMPLING = { temperature: 0.7, min_p: 0.05 };
const MAX_TOKENS = 2048;
const THINKING = { on: true, off: false };

/** The form's life: `values()` and `system()` for the API, `isValid()` with the browser's own complaint. */
export function parametersForm(form) {
  const kept = load("parameters", {}, (value) => value !== null && typeof value === "object");
  document.querySelector("#parameter-fields").append(...FIELDS.map(fieldNode));
  const inputs = new Map([...FIELDS.map(({ name }) => name), "system", "thinking"].map((name) => [name, form.elements[name]]));
  for (const [name, input] of inputs) input.value = typeof kept[name] === "string" ? kept[name] : "";
  let defaults = { max_tokens: MAX_TOKENS };

  const keep = () => save("parameters", Object.fromEntries([...inputs].map(([name, input]) => [name, input.value])));
  form.addEventListener("input", keep);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector("#reset-parameters").addEventListener("click", () => {
    for (const input of inputs.values()) input.value = "";
    keep();
  });

  return {
    isValid: () => form.reportValidity(),
    /** Takes what the model's configuration says of sampling; null where that is not known. */
    useModelDefaults(model) {
      const sampling = model !== null && Object.keys(model).length === 0 ? SAMPLING : {};
      defaults = { ...sampling, max_tokens: MAX_TOKENS };
      for (const { name } of FIELDS) inputs.get(name).placeholder = defaults[name] ?? model?.[name] ?? "default";
    },
    values() {
      const set = FIELDS.filter(({ name }) => inputs.get(name).value !== "").map(({ name }) => [name, inputs.get(name).valueAsNumber]);
      const thinking = THINKING[inputs.get("thinking").value];
      const template = thinking === undefined ? {} : { chat_template_kwargs: { enable_thinking: thinking } };
      return { ...defaults, ...Object.fromEntries(set), ...template };
    },
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
