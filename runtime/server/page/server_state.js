// Watches the server: is it there, which models has it, what are its figures. One round a second while the page is looked at.
import { apiKey, checkHealth, listModels, readMetrics } from "./api.js";

const ROUND_MS = 1000;
const ROUNDS_PER_HEALTH = 5; // between questions for its health while all is well

/** Calls `onState({ kind, message, models })` on each change (kind "ready" or a ServerError's) and `onFigures(text or null)` each round. */
export function watchServer(onState, onFigures) {
  let kind = null;
  let round = 0;
  let timer;

  async function turn() {
    clearTimeout(timer);
    const mine = ++round;
    const seen = await look(kind === "ready", mine % ROUNDS_PER_HEALTH === 0);
    if (mine !== round) return; // a newer round began meanwhile
    if (kind !== seen.kind) onState(seen);
    kind = seen.kind;
    onFigures(seen.metrics);
    // Without the key that it wants, asking again is no use.
    if (document.visibilityState === "visible" && kind !== "key") timer = setTimeout(turn, ROUND_MS);
  }

  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && turn());
  turn();
  return {
    /** Takes the key that the user gives, and looks at once. */
    useKey(key) {
      apiKey.set(key);
      kind = null;
      turn();
    },
  };
}

async function look(wasReady, isHealthDue) {
  try {
    if (!wasReady || isHealthDue) await checkHealth();
    const models = wasReady ? [] : await listModels();
    return { kind: "ready", models, metrics: await metricsIfAny() };
  } catch (error) {
    return { kind: error.kind, message: error.message, models: [], metrics: null };
  }
}

async function metricsIfAny() {
  try {
    return await readMetrics();
  } catch (error) {
    if (error.kind === "refused") return null; // a server without figures answers all the same
    throw error;
  }
}
