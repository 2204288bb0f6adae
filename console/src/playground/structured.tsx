import { useState } from "preact/hooks";
import { AnswerPanel } from "../parts/answer_panel";
import { CodePanel } from "../parts/code_panel";
import { Problem, Select, Tabs, TextArea } from "../parts/controls";
import { RunButtons } from "../parts/run_buttons";
import { requestFields, SettingsPanel } from "../parts/settings_panel";
import { useAnswer } from "../parts/use_answer";

const SCHEMAS: Record<string, [string, object]> = {
  "A person": [
    "Ada Lovelace was born in London in 1815. She was a mathematician. Describe her.",
    {
      type: "object",
      properties: {
        name: { type: "string", maxLength: 40 },
        born: { type: "integer", minimum: 1000, maximum: 2100 },
        occupation: { enum: ["mathematician", "painter", "engineer", "other"] },
      },
      required: ["name", "born", "occupation"],
    },
  ],
  "A review": [
    "Review: the soup was cold, but the waiter was kind. Judge it.",
    {
      type: "object",
      properties: {
        sentiment: { enum: ["good", "mixed", "bad"] },
        stars: { type: "integer", minimum: 1, maximum: 5 },
        topics: { type: "array", items: { type: "string", maxLength: 20 }, maxItems: 3 },
      },
      required: ["sentiment", "stars", "topics"],
    },
  ],
  "A colour": [
    "What colour is a ripe tomato?",
    { type: "object", properties: { colour: { type: "string", pattern: "^#[0-9a-f]{6}$" } }, required: ["colour"] },
  ],
};
const MODES = ["JSON schema", "Choice", "Regex", "Any JSON"] as const;
type Mode = (typeof MODES)[number];

export function Structured() {
  const [first] = Object.keys(SCHEMAS) as [string];
  const [sample, setSample] = useState(first);
  const [prompt, setPrompt] = useState(SCHEMAS[first]![0]);
  const [mode, setMode] = useState<Mode>("JSON schema");
  const [schema, setSchema] = useState(JSON.stringify(SCHEMAS[first]![1], null, 2));
  const [choices, setChoices] = useState("yes\nno\nmaybe");
  const [regex, setRegex] = useState("[A-Z][a-z]+, [0-9]{4}");
  const asking = useAnswer();
  const wrong = mode === "JSON schema" ? jsonProblem(schema) : "";
  const form = () => {
    if (mode === "Regex") return { response_format: { type: "regex", value: regex } };
    if (mode === "Choice") return { guided_choice: choices.split("\n").filter(Boolean) };
    if (mode === "Any JSON") return { response_format: { type: "json_object" } };
    return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: wrong ? {} : JSON.parse(schema) } } };
  };
  const body = () => ({ ...requestFields(), messages: [{ role: "user", content: prompt }], ...form() });
  const pick = (name: string) => {
    setSample(name);
    setPrompt(SCHEMAS[name]![0]);
    setSchema(JSON.stringify(SCHEMAS[name]![1], null, 2));
  };
  const run = () => void asking.run("/v1/chat/completions", body());
  const answer = asking.answer;
  return (
    <div class="view with-side">
      <div class="column">
        <h1>Structured output</h1>
        <TextArea label="Question" value={prompt} set={setPrompt} rows={3} send={run} />
        <Tabs label="Form of the answer" names={MODES} value={mode} set={(name) => setMode(name as Mode)} />
        {mode === "JSON schema" && (
          <>
            <Select label="Start from" value={sample} set={pick} options={Object.keys(SCHEMAS)} />
            <TextArea label="Schema" code value={schema} set={setSchema} rows={14} error={wrong} />
            <div class="actions">
              <button type="button" class="small" disabled={!!wrong} onClick={() => setSchema(JSON.stringify(JSON.parse(schema), null, 2))}>
                Format
              </button>
              <button type="button" class="small" disabled={!!wrong} onClick={() => setSchema(withProperty(schema))}>
                Add a property
              </button>
            </div>
          </>
        )}
        {mode === "Choice" && <TextArea label="Choices, one a line" value={choices} set={setChoices} rows={4} />}
        {mode === "Regex" && <TextArea label="Regular expression" code value={regex} set={setRegex} rows={2} />}
        <RunButtons asking={asking} run={run} label="Answer in this form" ready={!wrong && !!prompt} />
        <Problem error={asking.error} />
        {answer?.ignored && <p class="notice">No grammar can hold these parts of the schema, so they are not enforced: {answer.ignored}</p>}
        {answer && <AnswerPanel answer={answer} running={asking.running} label="Answer" />}
        {answer && !asking.running && mode !== "Regex" && mode !== "Choice" && <Parsed text={answer.text} />}
        <CodePanel path="/v1/chat/completions" body={body()} />
      </div>
      <aside aria-label="Settings">
        <SettingsPanel />
      </aside>
    </div>
  );
}

function Parsed({ text }: { text: string }) {
  const wrong = jsonProblem(text);
  if (wrong) return <p class="notice bad">The answer was cut short: {wrong}</p>;
  return (
    <pre class="parsed" tabIndex={0} aria-label="The answer as JSON">
      {JSON.stringify(JSON.parse(text), null, 2)}
    </pre>
  );
}

function jsonProblem(text: string): string {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

function withProperty(text: string): string {
  const schema = JSON.parse(text);
  const properties = (schema.properties ??= {});
  let number = 1;
  while (`field_${number}` in properties) number++;
  properties[`field_${number}`] = { type: "string", maxLength: 40 };
  schema.required = [...(schema.required ?? []), `field_${number}`];
  return JSON.stringify(schema, null, 2);
}
