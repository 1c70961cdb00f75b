// Prometheus' text format, and rates from counters.

/** name -> the values of its series, from Prometheus' text; labels are left aside. */
export function parseMetrics(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{.*\})? +(\S+)/.exec(line);
    if (!match) continue;
    if (!values.has(match[1])) values.set(match[1], []);
    values.get(match[1]).push(Number(match[2]));
  }
  return values;
}

/** The sum over a metric's series, or null where the server doesn't have it. */
export function total(metrics, name) {
  return metrics.get(name)?.reduce((sum, value) => sum + value, 0) ?? null;
}

/** A function from (count, milliseconds) to the count's growth a second since the call before; 0 at first, and after a restart. */
export function rateMeter() {
  let before = null;
  return (count, now) => {
    const rate = before && now > before.now ? Math.max(0, ((count - before.count) * 1000) / (now - before.now)) : 0;
    before = { count, now };
    return rate;
  };
}
