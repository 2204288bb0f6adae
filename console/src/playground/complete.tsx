import { useState } from "preact/hooks";
import { AnswerPanel } from "../parts/answer_panel";
import { CodePanel } from "../parts/code_panel";
import { Problem, TextArea } from "../parts/controls";
import { RunButtons } from "../parts/run_buttons";
import { requestFields, SettingsPanel } from "../parts/settings_panel";
import { useAnswer } from "../parts/use_answer";

export function Complete() {
  const [prompt, setPrompt] = useState("Once upon a time, in a town by the sea,");
  const asking = useAnswer();
  const body = () => ({ ...requestFields(), prompt });
  const run = () => void asking.run("/v1/completions", body());
  return (
    <div class="view with-side">
      <div class="column">
        <h1>Complete</h1>
        <TextArea label="Text to go on from" value={prompt} set={setPrompt} rows={6} send={run} hint="It goes to the model as it is, without a chat template." />
        <RunButtons asking={asking} run={run} label="Complete" ready={!!prompt} />
        <Problem error={asking.error} />
        {asking.answer && <AnswerPanel answer={asking.answer} running={asking.running} label="Completion" />}
        <CodePanel path="/v1/completions" body={body()} />
      </div>
      <aside aria-label="Settings">
        <SettingsPanel />
      </aside>
    </div>
  );
}
