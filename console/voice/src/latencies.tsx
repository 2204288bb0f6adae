/** How long each stage took, from the caller's last sound, or the end of typing, to the first sound of the answer. */

import { turns, type Turn } from "./call";

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

interface Stage {
  name: string;
  ms: number;
  /** When it began. */
  from_ms: number;
}

function Bar({ stage, whole_ms, whole }: { stage: Stage; whole_ms: number; whole?: boolean }) {
  const share = (ms: number) => `${(100 * ms) / whole_ms}%`;
  return (
    <tr class={whole ? "whole" : ""}>
      <th scope="row">{stage.name}</th>
      <td class="bar" aria-hidden="true">
        <span style={{ marginLeft: share(stage.from_ms), width: share(stage.ms) }} />
      </td>
      <td class="ms">{Math.round(stage.ms)} ms</td>
    </tr>
  );
}

/** The stages follow on each other, in the order that they are told. */
export function stages(turn: Turn): Stage[] {
  let from_ms = 0;
  return Object.entries(turn.stages_ms).map(([name, ms]) => {
    const stage = { name: NAMES[name] ?? name, ms, from_ms };
    from_ms += ms;
    return stage;
  });
}

export function Latencies() {
  const last = turns.value.at(-1);
  const totals = turns.value.filter((turn) => turn.typed === last?.typed).map((turn) => turn.total_ms);
  return (
    <section aria-labelledby="latencies" class="card">
      <h2 id="latencies">Time to the answer</h2>
      {last ? (
        <table>
          <caption>
            {last.typed ? "Typed" : "Spoken"} turn {totals.length}; the median is {Math.round(median(totals))} ms
          </caption>
          <tbody>
            {stages(last).map((stage) => (
              <Bar key={stage.name} stage={stage} whole_ms={last.total_ms} />
            ))}
            <Bar stage={{ name: "together", ms: last.total_ms, from_ms: 0 }} whole_ms={last.total_ms} whole />
          </tbody>
        </table>
      ) : (
        <p class="muted">Bars for each stage come with the first answer.</p>
      )}
    </section>
  );
}
