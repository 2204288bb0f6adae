import { useRef, useState } from "preact/hooks";
import { post } from "../lib/api";
import type { Usage } from "../lib/frames";
import { complaint, type Part, parts } from "../lib/holes";
import { AnswerPanel } from "../parts/answer_panel";
import { CodePanel } from "../parts/code_panel";
import { Copy, Problem, TextArea } from "../parts/controls";
import { RunButtons } from "../parts/run_buttons";
import { requestFields, SettingsPanel } from "../parts/settings_panel";
import { useAnswer } from "../parts/use_answer";

interface Filled {
  text: string;
  holes: { index: number; text: string; tokens: number; finish_reason: string }[];
  usage: Usage;
  parts: Part[];
}

const START = "def area(width, height):\n    return {{hole}}\n\nprint(area(3, {{hole:1}}))\n";

export function Infill() {
  const [text, setText] = useState(START);
  const [filled, setFilled] = useState<Filled>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const asking = useAnswer();
  const area = useRef<HTMLTextAreaElement>(null);
  const found = parts(text);
  const wrong = complaint(found);
  const holes = found.filter((part) => typeof part !== "string");
  // One gap of free length can be watched as it settles; several are answered as a whole.
  const watched = holes.length === 1 && !(holes[0] as { tokens?: number }).tokens;
  const path = watched ? "/v1/completions" : "/v1/infill";
  const body = () => {
    if (!watched) return { ...requestFields(), parts: found };
    const at = found.findIndex((part) => typeof part !== "string");
    const join = (some: Part[]) => some.filter((part) => typeof part === "string").join("");
    return { ...requestFields(), prompt: join(found.slice(0, at)), suffix: join(found.slice(at + 1)) };
  };
  const run = async () => {
    setFilled(undefined);
    setError(undefined);
    asking.clear();
    if (watched) {
      await asking.run(path, body());
      return;
    }
    setBusy(true);
    try {
      setFilled({ ...(await post<Filled>(path, body())), parts: found });
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  const insert = (hole: string) => {
    const at = area.current?.selectionStart ?? text.length;
    const end = area.current?.selectionEnd ?? at;
    setText(text.slice(0, at) + hole + text.slice(end));
    area.current?.focus();
  };
  return (
    <div class="view with-side">
      <div class="column">
        <h1>Infill</h1>
        <TextArea label="Text with holes" code value={text} set={setText} rows={9} area={area} error={wrong} hint="The model sees what stands on both sides of a hole." />
        <div class="actions">
          <button type="button" class="small" onClick={() => insert("{{hole}}")}>
            Insert a hole
          </button>
          <button type="button" class="small" onClick={() => insert("{{hole:3}}")}>
            Insert a hole of 3 tokens
          </button>
        </div>
        <RunButtons asking={{ running: busy || asking.running, stop: asking.stop }} run={() => void run()} label="Fill" ready={!wrong} />
        <Problem error={error ?? asking.error} />
        {asking.answer && <AnswerPanel answer={asking.answer} running={asking.running} label="What fills the hole" />}
        {filled && <Result filled={filled} />}
        <CodePanel path={path} body={body()} />
      </div>
      <aside aria-label="Settings">
        <SettingsPanel />
      </aside>
    </div>
  );
}

function Result({ filled }: { filled: Filled }) {
  let number = 0;
  const { diffusion, completion_tokens } = filled.usage;
  return (
    <div class="answer">
      <pre class="filled" tabIndex={0} aria-label="The text with its holes filled">
        {filled.parts.map((part, index) => (typeof part === "string" ? part : <mark key={index}>{filled.holes[number++]?.text}</mark>))}
      </pre>
      <p class="hint">
        {filled.holes.length} holes, {completion_tokens} tokens in {diffusion?.passes} passes <Copy text={filled.text} label="Copy text" />
      </p>
    </div>
  );
}
