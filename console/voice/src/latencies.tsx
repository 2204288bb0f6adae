/** How long each stage took, from the caller's last sound to the first sound of the answer. */

import { turns } from "./call";

const NAMES: Record<string, string> = {
  endpointing: "end of speech",
  transcription: "recognition",
  turn_detection: "end of turn",
  first_text: "first text",
  tool_call: "function",
  first_sentence: "first clause",
  synthesis: "speech",
  transport: "transport",
  pipeline: "other",
};

export function median(values: number[]): number {
  const ordered = [...values].sort((a, b) => a - b);
  const middle = ordered.length / 2;
  return ordered.length % 2 ? ordered[Math.floor(middle)]! : (ordered[middle - 1]! + ordered[middle]!) / 2;
}

function Bar({ name, ms, most }: { name: string; ms: number; most: number }) {
  return (
    <tr>
      <th scope="row">{name}</th>
      <td class="bar" aria-hidden="true">
        <span style={{ width: `${(100 * ms) / most}%` }} />
      </td>
      <td class="ms">{Math.round(ms)} ms</td>
    </tr>
  );
}

export function Latencies() {
  const last = turns.value.at(-1);
  const totals = turns.value.map((turn) => turn.total_ms);
  return (
    <section aria-labelledby="latencies" class="card">
      <h2 id="latencies">Time to the answer</h2>
      {last ? (
        <table>
          <caption>
            Turn {last.turn}; the median of {totals.length} is {Math.round(median(totals))} ms
          </caption>
          <tbody>
            {Object.entries(last.stages_ms).map(([stage, ms]) => (
              <Bar key={stage} name={NAMES[stage] ?? stage} ms={ms} most={last.total_ms} />
            ))}
            <Bar name="together" ms={last.total_ms} most={last.total_ms} />
          </tbody>
        </table>
      ) : (
        <p class="muted">Bars for each stage come with the first answer.</p>
      )}
    </section>
  );
}
