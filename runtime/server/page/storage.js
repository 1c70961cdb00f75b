// What the browser keeps between visits. Storage may be full, forbidden, or hold what another version wrote: then the page does without.

/** The value kept under `name`, or `fallback` where there is none that `isValid` accepts. */
export function load(name, fallback, isValid) {
  try {
    const value = JSON.parse(localStorage.getItem(`cupola.${name}`));
    return isValid(value) ? value : fallback;
  } catch {
    return fallback;
  }
}

/** Keeps `value`; says whether that worked. */
export function save(name, value) {
  try {
    localStorage.setItem(`cupola.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
