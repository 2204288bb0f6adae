/** The request on the screen as code. */

import { useState } from "preact/hooks";
import { session } from "../lib/api";
import { type Language, snippet } from "../lib/snippets";
import { Copy, Tabs } from "./controls";

export function CodePanel({ path, body }: { path: string; body: Record<string, unknown> }) {
  const [language, setLanguage] = useState<Language>("curl");
  const code = snippet(language, path, body, !!session.value?.accounts);
  return (
    <details class="code-panel">
      <summary>Use it from your code</summary>
      <div class="code-head">
        <Tabs names={["curl", "Python", "Node"]} value={language} set={(name) => setLanguage(name as Language)} label="Language" />
        <Copy text={code} />
      </div>
      <pre tabIndex={0} aria-label={`The request in ${language}`}>
        {code}
      </pre>
    </details>
  );
}
