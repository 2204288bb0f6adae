import { useState } from "preact/hooks";
import type { Answer, ToolCall } from "../lib/frames";
import { AnswerPanel } from "../parts/answer_panel";
import { CodePanel } from "../parts/code_panel";
import { Problem, Select, TextArea } from "../parts/controls";
import { RunButtons } from "../parts/run_buttons";
import { requestFields, SettingsPanel } from "../parts/settings_panel";
import { useAnswer } from "../parts/use_answer";

const TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city now.",
      parameters: {
        type: "object",
        properties: { city: { type: "string", maxLength: 30 }, unit: { enum: ["celsius", "fahrenheit"] } },
        required: ["city", "unit"],
      },
    },
  },
];

export function Tools() {
  const [prompt, setPrompt] = useState("What is the weather in Paris, in celsius?");
  const [tools, setTools] = useState(JSON.stringify(TOOLS, null, 2));
  const [choice, setChoice] = useState("required");
  const [results, setResults] = useState<Record<string, string>>({});
  const [called, setCalled] = useState<Answer>();
  const asking = useAnswer();
  const [offered, wrong] = read(tools);
  const names = offered.map((tool) => tool.function?.name).filter(Boolean) as string[];
  const body = () => ({
    ...requestFields(),
    messages: [{ role: "user", content: prompt }] as unknown[],
    tools: offered,
    tool_choice: ["auto", "required", "none"].includes(choice) ? choice : { type: "function", function: { name: choice } },
  });
  const run = async () => {
    setCalled(undefined);
    setResults({});
    setCalled(await asking.run("/v1/chat/completions", body()));
  };
  const goOn = async () => {
    const calls = called!.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    const messages = [
      { role: "user", content: prompt },
      { role: "assistant", content: "", tool_calls: calls },
      ...calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: results[call.id] ?? "" })),
    ];
    await asking.run("/v1/chat/completions", { ...requestFields(), messages });
  };
  const calls = called?.calls ?? asking.answer?.calls ?? [];
  return (
    <div class="view with-side">
      <div class="column">
        <h1>Tools</h1>
        <TextArea label="Message" value={prompt} set={setPrompt} rows={2} send={() => void run()} />
        <TextArea label="Tools offered" code value={tools} set={setTools} rows={14} error={wrong} />
        <Select
          label="Choice"
          value={choice}
          set={setChoice}
          hint="With required or a named tool a grammar holds the answer to one call; small models call little by themselves."
          options={["auto", "required", "none", ...names.map((name) => [name, `always ${name}`] as const)]}
        />
        <RunButtons asking={asking} run={() => void run()} label="Ask" ready={!wrong} />
        <Problem error={asking.error} />
        {asking.answer && (asking.running || !calls.length || called?.text !== asking.answer.text) && (
          <AnswerPanel answer={asking.answer} running={asking.running} label="Answer" />
        )}
        {calls.map((call) => (
          <Call key={call.id} call={call} result={results[call.id] ?? ""} set={(text) => setResults({ ...results, [call.id]: text })} />
        ))}
        {called && called.calls.length > 0 && !asking.running && (
          <div class="actions">
            <button type="button" onClick={() => void goOn()}>
              Send the results
            </button>
          </div>
        )}
        <CodePanel path="/v1/chat/completions" body={body()} />
      </div>
      <aside aria-label="Settings">
        <SettingsPanel />
      </aside>
    </div>
  );
}

function Call({ call, result, set }: { call: ToolCall; result: string; set: (text: string) => void }) {
  return (
    <section class="call" aria-label={`Call of ${call.name}`}>
      <h2>
        <code>{call.name}</code>
      </h2>
      <pre tabIndex={0} aria-label="Arguments">
        {pretty(call.arguments)}
      </pre>
      <TextArea label="What the tool answers" value={result} set={set} rows={2} placeholder='{"temperature": 21}' />
    </section>
  );
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function read(text: string): [any[], string] {
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? [found, ""] : [[], "A list of tools is needed."];
  } catch (error) {
    return [[], (error as Error).message];
  }
}
