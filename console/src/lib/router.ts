/** The view is named behind the hash, so that the server knows one page only. */

import { signal } from "@preact/signals";

export const route = signal(current());

function current(): string {
  return location.hash.replace(/^#\/?/, "").split("?")[0] || "chat";
}

addEventListener("hashchange", () => {
  route.value = current();
});
