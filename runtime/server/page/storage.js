// What the browser keeps between visits. Storage may be full, forbidden, or hold what another version wrote: then the page does without.
const PREFIX = "cupola.";

/** The value kept under `name`, or `fallback` where there is none that `isValid` accepts. */
export function load(name, fallback, isValid) {
  try {
    const value = JSON.parse(localStorage.getItem(PREFIX + name));
    return isValid(value) ? value : fallback;
  } catch {
    return fallback;
  }
}

/** Keeps `value`; says whether that worked. */
export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Forgets what is kept under `name`. */
export function remove(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    return; // storage that is forbidden holds nothing
  }
}

/** The names under which something is kept and that begin with `start`. */
export function names(start) {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(PREFIX + start))
      .map((key) => key.slice(PREFIX.length));
  } catch {
    return [];
  }
}
