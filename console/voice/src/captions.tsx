/** What both sides said. */

import { lines, type Line } from "./call";

export function text(line: Line): string {
  const parts = [...line.parts].sort(([before], [after]) => before - after);
  return parts.map(([, part]) => part.trim()).join(" ");
}

export function Captions() {
  return (
    <section aria-labelledby="captions" class="card">
      <h2 id="captions">Captions</h2>
      <div role="log" aria-label="What was said" tabIndex={0} class="log">
        <ol>
        {lines.value.map((line, index) => (
          <li key={index} class={line.who}>
            <span class="who">{line.who === "you" ? "You" : "Agent"}</span> <span class="said">{text(line)}</span>
            {line.interrupted && <span class="cut"> interrupted</span>}
          </li>
        ))}
        </ol>
      </div>
      {lines.value.length === 0 && <p class="muted">Start the call and say something; speak at any time to interrupt.</p>}
    </section>
  );
}
