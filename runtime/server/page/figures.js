// The strip of live figures: what the server's /metrics say, once a second while the page is looked at, with the last minute as a line.
import { parseMetrics, rateMeter, total } from "./metrics.js";

const NUM_SAMPLES = 60;
const WIDTH = 100; // of the drawing, in its own units; CSS stretches it
const HEIGHT = 24;
const whole = (value) => String(Math.round(value));
const percent = (value) => (value > 0 && value < 0.0995 ? `${(value * 100).toFixed(1)} %` : `${Math.round(value * 100)} %`);

// id in the page -> how to read it, how to write it, and the value that a full-height line stands for at least
const FIGURES = [
  { id: "tokens", read: (metrics, rates) => rates.tokens, write: whole, least: 10 },
  { id: "kv", read: (metrics) => total(metrics, "cupola:kv_cache_usage_perc"), write: percent, least: 0.005 },
  { id: "running", read: (metrics) => total(metrics, "cupola:num_requests_running"), write: whole, least: 2 },
  { id: "waiting", read: (metrics) => total(metrics, "cupola:num_requests_waiting"), write: whole, least: 2 },
];

/** An object with `show(metrics text)` and `clear()` over the elements figure-*. */
export function figuresView() {
  const tokensRate = rateMeter();
  const samples = new Map(FIGURES.map(({ id }) => [id, []]));
  return {
    show(text) {
      const metrics = parseMetrics(text);
      const count = total(metrics, "cupola:generation_tokens_total");
      const rates = { tokens: count === null ? null : tokensRate(count, performance.now()) };
      for (const { id, read, write, least } of FIGURES) {
        const value = read(metrics, rates);
        setValue(id, value === null ? "–" : write(value));
        const kept = samples.get(id);
        kept.push(value ?? 0);
        if (kept.length > NUM_SAMPLES) kept.shift();
        drawLine(document.querySelector(`#figure-${id} svg`), kept, least);
      }
    },
    clear() {
      for (const { id } of FIGURES) setValue(id, "–");
    },
  };
}

function setValue(id, text) {
  document.querySelector(`#figure-${id} .value`).textContent = text;
}

function drawLine(svg, values, least) {
  const highest = Math.max(least, ...values);
  const step = WIDTH / (NUM_SAMPLES - 1);
  const start = WIDTH - (values.length - 1) * step; // the newest stands at the right
  const points = values.map((value, i) => `${(start + i * step).toFixed(1)},${(HEIGHT - 1 - (value / highest) * (HEIGHT - 3)).toFixed(1)}`);
  svg.querySelector(".line").setAttribute("points", points.join(" "));
  svg.querySelector(".area").setAttribute("points", `${start.toFixed(1)},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`);
}
