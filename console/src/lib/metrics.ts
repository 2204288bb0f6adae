/** Prometheus' text, read: `name{labels}` -> value. */

export type Scrape = Map<string, number>;

export function parse(text: string): Scrape {
  const values: Scrape = new Map();
  for (const line of text.split("\n")) {
    if (!line || line.startsWith("#")) continue;
    const end = line.lastIndexOf(" ");
    values.set(line.slice(0, end), Number(line.slice(end + 1)));
  }
  return values;
}

/** The sum over all labels of a metric. */
export function total(scrape: Scrape, name: string, having = ""): number {
  let sum = 0;
  for (const [key, value] of scrape) {
    if ((key === name || key.startsWith(`${name}{`)) && key.includes(having)) sum += value;
  }
  return sum;
}

/** Values of a label that a metric has. */
export function labels(scrape: Scrape, name: string, label: string): string[] {
  const found = [...scrape.keys()].filter((key) => key.startsWith(`${name}{`)).map((key) => new RegExp(`${label}="([^"]*)"`).exec(key)?.[1]);
  return [...new Set(found.filter((one): one is string => !!one))];
}

/** What a counter rose by over what another did; null where the latter stood still. */
export function ratio(before: Scrape, now: Scrape, above: string, below: string, having = "", havingBelow = having): number | null {
  const rise = (name: string, part: string) => total(now, name, part) - total(before, name, part);
  const steps = rise(below, havingBelow);
  return steps > 0 ? rise(above, having) / steps : null;
}
