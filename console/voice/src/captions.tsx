/** What both sides said. */

import { useEffect, useRef } from "preact/hooks";
import { lines, type Line } from "./call";
import { Composer } from "./composer";

/** How far from its end the log may be scrolled and still follow what is said. */
const NEAR_PX = 80;

export function text(line: Line): string {
  const parts = [...line.parts].sort(([before], [after]) => before - after);
  return parts.map(([, part]) => part.trim()).join(" ");
}

export function Captions() {
  const log = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  useEffect(() => {
    if (follows.current) log.current?.scrollTo({ top: log.current.scrollHeight });
  }, [lines.value]);
  return (
    <section aria-labelledby="captions" class="card">
      <h2 id="captions">Captions</h2>
      <div
        ref={log}
        role="log"
        aria-label="What was said"
        tabIndex={0}
        class="log"
        onScroll={({ currentTarget: box }) => {
          follows.current = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
        }}
      >
        <ol>
          {lines.value.map((line, index) => (
            <li key={index} class={line.who}>
              <span class="who">{line.who === "you" ? "You" : "Agent"}</span> <span class="said">{text(line)}</span>
              {line.interrupted && <span class="cut"> interrupted</span>}
            </li>
          ))}
        </ol>
        {lines.value.length === 0 && <p class="muted">Start the call and say something, or type it. Speak or type at any time to interrupt.</p>}
      </div>
      <Composer />
    </section>
  );
}
