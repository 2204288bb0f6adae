import { useRef, useState } from "preact/hooks";
import { readiness } from "../lib/models";
import type { Answer } from "../lib/frames";
import { AnswerPanel } from "../parts/answer_panel";
import { CodePanel } from "../parts/code_panel";
import { Problem, TextArea } from "../parts/controls";
import { requestFields, SettingsPanel } from "../parts/settings_panel";
import { useAnswer } from "../parts/use_answer";

interface Turn {
  question: string;
  answer?: Answer;
}

const IDEAS = ["Why is the sky blue?", "Write a haiku about rivers.", "Name three uses of a paper clip."];

export function Chat() {
  const [turns, setTurns] = useState<Turn[]>([]);
  const [draft, setDraft] = useState("");
  const [system, setSystem] = useState("");
  const asking = useAnswer();
  const area = useRef<HTMLTextAreaElement>(null);
  const bodyFor = (questions: Turn[]) => ({
    ...requestFields(),
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...questions.flatMap((turn) => [
        { role: "user", content: turn.question },
        ...(turn.answer ? [{ role: "assistant", content: turn.answer.text }] : []),
      ]),
    ],
  });
  const send = async (text = draft.trim()) => {
    if (!text || asking.running) return;
    const asked = [...turns, { question: text }];
    setTurns(asked);
    setDraft("");
    const answer = await asking.run("/v1/chat/completions", bodyFor(asked));
    if (answer) setTurns([...turns, { question: text, answer }]);
    area.current?.focus();
  };
  const shown = turns.length ? turns : [{ question: draft || IDEAS[0]! }];
  return (
    <div class="view with-side">
      <div class="column">
        <h1>Chat</h1>
        {!turns.length && (
          <div class="welcome">
            <p>
              A diffusion model starts from masked positions and settles several of them in each pass. Ask something and watch it happen; then drag
              the slider through the passes.
            </p>
            <p class="ideas">
              {IDEAS.map((idea) => (
                <button key={idea} type="button" onClick={() => void send(idea)} disabled={readiness.value !== "ready"}>
                  {idea}
                </button>
              ))}
            </p>
          </div>
        )}
        <div class="turns">
          {turns.map((turn, index) => {
            const latest = index === turns.length - 1;
            const answer = turn.answer ?? (latest ? asking.answer : undefined);
            return (
              <article key={index} class="turn" aria-label={`Turn ${index + 1}`}>
                <p class="question">{turn.question}</p>
                {answer ? (
                  <AnswerPanel answer={answer} running={latest && asking.running} label={`Answer ${index + 1}`} legend={latest} />
                ) : (
                  latest && asking.running && <p class="empty">Reading the prompt …</p>
                )}
              </article>
            );
          })}
        </div>
        <Problem error={asking.error} />
        <form
          class="composer"
          onSubmit={(event) => {
            event.preventDefault();
            void send();
          }}
        >
          <TextArea label="Message" hidden value={draft} set={setDraft} rows={3} placeholder="Ask something" send={() => void send()} area={area} />
          <div class="actions">
            {asking.running ? (
              <button type="button" onClick={asking.stop}>
                Stop
              </button>
            ) : (
              <button type="submit" class="primary" disabled={!draft.trim() || readiness.value !== "ready"}>
                Send
              </button>
            )}
            {turns.length > 0 && !asking.running && (
              <button
                type="button"
                onClick={() => {
                  setTurns([]);
                  asking.clear();
                }}
              >
                New chat
              </button>
            )}
            <span class="hint">Ctrl+Enter sends</span>
          </div>
        </form>
        <CodePanel path="/v1/chat/completions" body={bodyFor(shown)} />
      </div>
      <aside aria-label="Settings">
        <SettingsPanel />
        <details class="settings">
          <summary>System prompt</summary>
          <div class="settings-body">
            <TextArea label="System prompt" hidden value={system} set={setSystem} rows={4} placeholder="You are …" />
          </div>
        </details>
      </aside>
    </div>
  );
}
