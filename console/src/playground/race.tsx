import { useState } from "preact/hooks";
import type { Answer } from "../lib/frames";
import { decoders } from "../lib/models";
import { AnswerPanel } from "../parts/answer_panel";
import { Problem, Select, Tabs, TextArea } from "../parts/controls";
import { RunButtons } from "../parts/run_buttons";
import { requestFields, settings } from "../parts/settings_panel";
import { useAnswer } from "../parts/use_answer";

const TOGETHER = "Together";
const IN_TURN = "One after the other";

export function Race() {
  const presets = Object.keys(decoders.value?.presets ?? {});
  const [prompt, setPrompt] = useState("Explain in two sentences why the sky is blue.");
  const [left, setLeft] = useState("");
  const [right, setRight] = useState("");
  const [how, setHow] = useState(TOGETHER);
  const one = useAnswer();
  const two = useAnswer();
  const first = left || (presets.includes("ar") ? "ar" : (presets[0] ?? ""));
  const second = right || (presets.includes("balanced") ? "balanced" : (presets[1] ?? first));
  const body = (preset: string) => ({
    ...requestFields({ ...settings.value, preset, decoder: "", knobs: {} }),
    messages: [{ role: "user", content: prompt }],
  });
  const run = async () => {
    one.clear();
    two.clear();
    const begin = () => one.run("/v1/chat/completions", body(first));
    const follow = () => two.run("/v1/chat/completions", body(second));
    if (how === TOGETHER) await Promise.all([begin(), follow()]);
    else if (await begin()) await follow();
  };
  const running = one.running || two.running;
  const stop = () => {
    one.stop();
    two.stop();
  };
  return (
    <div class="view">
      <h1>Race</h1>
      <p class="lead">
        The same weights, the same prompt, two ways of decoding. Together both share every pass of the model, so passes are what counts; one after
        the other each has the machine to itself, so seconds are.
      </p>
      <TextArea label="Prompt" value={prompt} set={setPrompt} rows={2} send={() => void run()} />
      <div class="row">
        <Select label="Left lane" value={first} set={setLeft} options={presets} />
        <Select label="Right lane" value={second} set={setRight} options={presets} />
        <Tabs label="How they run" names={[TOGETHER, IN_TURN]} value={how} set={setHow} />
      </div>
      <RunButtons asking={{ running, stop }} run={() => void run()} label="Start the race" ready={!!prompt} />
      <Problem error={one.error ?? two.error} />
      <div class="lanes">
        <Lane name={first} answer={one.answer} running={one.running} />
        <Lane name={second} answer={two.answer} running={two.running} />
      </div>
      {one.answer?.usage && two.answer?.usage && !running && <Verdict names={[first, second]} answers={[one.answer, two.answer]} />}
    </div>
  );
}

function Lane({ name, answer, running }: { name: string; answer?: Answer; running: boolean }) {
  return (
    <section class="card lane" aria-label={`Lane ${name}`}>
      <h2>{name}</h2>
      {answer ? <AnswerPanel answer={answer} running={running} label={`Answer of ${name}`} legend={false} /> : <p class="empty">{running ? "Reading the prompt …" : "Ready"}</p>}
    </section>
  );
}

function Verdict({ names, answers }: { names: [string, string]; answers: [Answer, Answer] }) {
  const [one, two] = answers.map((answer) => ({
    passes: answer.usage!.diffusion!.passes,
    rate: answer.usage!.completion_tokens / answer.seconds,
  })) as [{ passes: number; rate: number }, { passes: number; rate: number }];
  const same = answers[0].text === answers[1].text;
  return (
    <p class="notice" role="status">
      {names[1]} took {two.passes} passes where {names[0]} took {one.passes}, at {two.rate.toFixed(1)} against {one.rate.toFixed(1)} tokens/s.{" "}
      {same ? "The texts are the same." : "The texts differ."}
    </p>
  );
}
