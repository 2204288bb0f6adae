import { useRef, useState } from "preact/hooks";
import { post } from "../lib/api";
import { diffLines, unified } from "../lib/diff";
import type { Usage } from "../lib/frames";
import { CodePanel } from "../parts/code_panel";
import { Problem, TextArea } from "../parts/controls";
import { RunButtons } from "../parts/run_buttons";
import { requestFields, SettingsPanel } from "../parts/settings_panel";

const BEFORE = `def area(w, h):
    return w * h


print(area(3, 4))
`;
const NOW = `def area(width, height):
    return w * h


print(area(3, 4))
`;
const AROUND = 12;

interface Proposal {
  region: string;
  edited: string | null;
  usage: Usage;
  seconds: number;
}

export function NextEdit() {
  const [before, setBefore] = useState(BEFORE);
  const [now, setNow] = useState(NOW);
  const [proposal, setProposal] = useState<Proposal>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const area = useRef<HTMLTextAreaElement>(null);
  const control = useRef<AbortController | undefined>(undefined);
  const [lines, first] = around(now, area.current?.selectionStart ?? 0);
  const region = lines.join("\n");
  const body = () => ({ ...requestFields(), messages: [{ role: "user", content: tagged(before, now, region) }] });
  const run = async () => {
    setBusy(true);
    setError(undefined);
    setProposal(undefined);
    control.current = new AbortController();
    const began = performance.now();
    try {
      const reply = await post<any>("/v1/edit/completions", body(), control.current.signal);
      const edited = unfenced(reply.choices[0].message.content);
      setProposal({ region, edited, usage: reply.usage, seconds: (performance.now() - began) / 1000 });
    } catch (failure) {
      if (!control.current.signal.aborted) setError(failure);
    } finally {
      setBusy(false);
    }
  };
  const accept = () => {
    if (!proposal?.edited) return;
    const all = now.split("\n");
    all.splice(first, lines.length, ...proposal.edited.split("\n"));
    setBefore(now);
    setNow(all.join("\n"));
    setProposal(undefined);
  };
  return (
    <div class="view with-side">
      <div class="column">
        <h1>Next edit</h1>
        <p class="lead">Change the right-hand file as you would in an editor. What you have changed so far tells the model what you are about; it proposes the next edit around the cursor.</p>
        <div class="pair">
          <TextArea label="File before your edits" code value={before} set={setBefore} rows={10} />
          <TextArea label="File now" code value={now} set={setNow} rows={10} area={area} send={() => void run()} />
        </div>
        <RunButtons asking={{ running: busy, stop: () => control.current?.abort() }} run={() => void run()} label="Predict the next edit" ready={!!now.trim()} />
        <Problem error={error} />
        {proposal && <Proposed proposal={proposal} accept={accept} />}
        <CodePanel path="/v1/edit/completions" body={body()} />
      </div>
      <aside aria-label="Settings">
        <SettingsPanel />
      </aside>
    </div>
  );
}

function Proposed({ proposal, accept }: { proposal: Proposal; accept: () => void }) {
  const { usage, seconds, edited, region } = proposal;
  const figures = `${usage.completion_tokens} tokens in ${usage.diffusion?.passes} passes, ${seconds.toFixed(2)} s`;
  if (edited === null || edited === region) return <p class="notice">The model would change nothing here. {figures}</p>;
  const words = { same: "", added: "added: ", removed: "removed: " };
  return (
    <div class="answer">
      <div class="diff" role="group" tabIndex={0} aria-label="The proposed edit">
        {diffLines(region, edited).map((line, index) => (
          <div key={index} class={line.kind}>
            <span class="sr">{words[line.kind]}</span>
            <span class="gutter" aria-hidden="true">
              {{ same: " ", added: "+", removed: "−" }[line.kind]}
            </span>
            {line.text || " "}
          </div>
        ))}
      </div>
      <div class="actions">
        <button type="button" class="primary" onClick={accept}>
          Accept
        </button>
        <span class="hint">{figures}</span>
      </div>
    </div>
  );
}

/** The lines around the cursor, and the number of the first. */
function around(text: string, cursor: number): [string[], number] {
  const all = text.replace(/\n$/, "").split("\n");
  const at = text.slice(0, cursor).split("\n").length - 1;
  const first = Math.max(0, at - AROUND);
  return [all.slice(first, at + AROUND + 1), first];
}

function tagged(before: string, now: string, region: string): string {
  const marked = now.replace(region, () => `<|code_to_edit|>\n${region}\n<|/code_to_edit|>`);
  const history = before === now ? "" : unified(before, now);
  return [
    "<|recently_viewed_code_snippets|>\n<|/recently_viewed_code_snippets|>",
    `<|current_file_content|>\n${marked}\n<|/current_file_content|>`,
    `<|edit_diff_history|>\n${history}\n<|/edit_diff_history|>`,
  ].join("\n\n");
}

/** Null where nothing would change. */
function unfenced(content: string): string | null {
  const found = /^```[^\n]*\n([\s\S]*?)\n?```\s*$/.exec(content);
  return found ? found[1]! : content.trim() === "None" ? null : content;
}
