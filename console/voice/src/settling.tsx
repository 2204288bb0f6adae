/** The canvas of the answer: what is settled, and what the model still guesses. Offsets count code points. */

import { canvas, type Canvas } from "./call";

type State = "settled" | "filled" | "masked" | "edited";

/** Runs of letters in one state. */
export function runs(frame: Canvas): [string, State][] {
  const letters = Array.from(frame.text);
  const states: State[] = letters.map(() => "filled");
  for (const state of ["settled", "masked", "edited"] as const) {
    for (const [start, end] of frame[state]) states.fill(state, start, end);
  }
  const found: [string, State][] = [];
  letters.forEach((letter, index) => {
    const last = found.at(-1);
    if (last && last[1] === states[index]) last[0] += letter;
    else found.push([letter, states[index]!]);
  });
  return found;
}

export function Settling() {
  const frame = canvas.value;
  return (
    <section aria-labelledby="settling" class="card">
      <h2 id="settling">The answer settles</h2>
      <p class="canvas" data-pass={frame?.pass}>
        {frame ? runs(frame).map(([letters, state], index) => <span key={index} class={`t ${state}`}>{letters}</span>) : <span class="muted">Nothing yet.</span>}
      </p>
      <p class="legend">
        <span class="t settled">settled</span> <span class="t filled">draft</span> <span class="t masked">masked, a guess</span>
      </p>
    </section>
  );
}
