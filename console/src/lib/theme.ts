/** Light or dark; what the system says until somebody chooses. The only thing that the page stores. */

import { signal } from "@preact/signals";

export type Theme = "light" | "dark";
const NAME = "vermilion-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export const theme = signal<Theme>(initial());

function initial(): Theme {
  const stored = read();
  return stored === "light" || stored === "dark" ? stored : system.matches ? "dark" : "light";
}

function read(): string | null {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null;
  }
}

export function toggle(): void {
  theme.value = theme.value === "dark" ? "light" : "dark";
  try {
    localStorage.setItem(NAME, theme.value);
  } catch {
    // A browser that stores nothing starts with the system's choice.
  }
}

theme.subscribe((now) => {
  document.documentElement.dataset.theme = now;
});
system.addEventListener("change", () => {
  if (!read()) theme.value = system.matches ? "dark" : "light";
});
