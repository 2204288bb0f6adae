/** A text with holes, written as {{hole}} or, of a fixed number of tokens, {{hole:3}}. */

export type Part = string | { tokens?: number };

const HOLE = /\{\{hole(?::(\d{1,3}))?\}\}/g;

export function parts(text: string): Part[] {
  const found: Part[] = [];
  let at = 0;
  for (const match of text.matchAll(HOLE)) {
    if (match.index > at) found.push(text.slice(at, match.index));
    found.push(match[1] ? { tokens: Number(match[1]) } : {});
    at = match.index + match[0].length;
  }
  if (at < text.length) found.push(text.slice(at));
  return found;
}

/** Why the text cannot be asked; empty where it can. */
export function complaint(found: Part[]): string {
  if (!found.some((part) => typeof part !== "string")) return "Put at least one hole into the text.";
  const touching = found.some((part, index) => typeof part !== "string" && index > 0 && typeof found[index - 1] !== "string");
  return touching ? "Two holes need text between them." : "";
}
