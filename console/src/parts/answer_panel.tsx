/** An answer as it settles; afterwards every pass of it can be looked at again. */

import { useEffect, useState } from "preact/hooks";
import { type Answer, speed } from "../lib/frames";
import { CanvasView, Legend } from "./canvas_view";
import { Copy } from "./controls";

interface Given {
  answer: Answer;
  running: boolean;
  label: string;
  legend?: boolean;
}

export function AnswerPanel({ answer, running, label, legend = true }: Given) {
  const last = answer.frames.length - 1;
  const [at, setAt] = useState(-1);
  const [playing, setPlaying] = useState(false);
  const index = running || at < 0 ? last : Math.min(at, last);
  useEffect(() => {
    if (running) {
      setAt(-1);
      setPlaying(false);
    }
  }, [running]);
  useEffect(() => {
    if (!playing) return;
    if (index >= last) {
      setPlaying(false);
      return;
    }
    const wait = Math.min(400, Math.max(16, answer.frames[index + 1]!.at - answer.frames[index]!.at));
    const timer = setTimeout(() => setAt(index + 1), wait);
    return () => clearTimeout(timer);
  }, [playing, index, last]);
  const frame = answer.frames[index];
  return (
    <div class="answer">
      <CanvasView frame={frame} label={label} running={running} />
      {last > 0 && (
        <div class="scrub">
          <button
            type="button"
            class="small"
            disabled={running}
            onClick={() => {
              if (!playing && index >= last) setAt(0);
              setPlaying(!playing);
            }}
          >
            {playing ? "Pause" : "Replay"}
          </button>
          <input
            type="range"
            min={0}
            max={last}
            value={index}
            disabled={running}
            aria-label="Pass"
            aria-valuetext={`Pass ${frame?.pass ?? 0}, ${Math.round((frame?.progress ?? 0) * 100)} percent`}
            onInput={(event) => {
              setPlaying(false);
              setAt(Number(event.currentTarget.value));
            }}
          />
          <span class="scrub-text">
            pass {frame?.pass ?? 0} · {frame?.numSettled ?? 0} tokens
          </span>
        </div>
      )}
      {running && <progress max={1} value={frame?.progress ?? 0} aria-label="How much of the answer's limit is filled" />}
      <Figures answer={answer} running={running} />
      {legend && last >= 0 && <Legend />}
    </div>
  );
}

export function Figures({ answer, running }: { answer: Answer; running: boolean }) {
  const frame = answer.frames.at(-1);
  const usage = answer.usage;
  if (!frame) return null;
  const tokens = usage?.completion_tokens ?? frame.numSettled;
  const passes = usage?.diffusion?.passes ?? frame.pass;
  const rate = usage ? tokens / answer.seconds : speed(frame);
  return (
    <div class="figures-row">
      <dl class="figures">
        <Figure name="tokens/s" value={rate.toFixed(1)} />
        <Figure name="tokens" value={String(tokens)} />
        <Figure name="passes" value={String(passes)} />
        <Figure name="tokens per pass" value={passes ? (tokens / passes).toFixed(2) : "–"} />
      <Figure name="first text" value={answer.firstText === undefined ? "–" : `${Math.round(answer.firstText * 1000)} ms`} />
      {usage?.diffusion?.edits ? <Figure name="edits" value={String(usage.diffusion.edits)} /> : null}
      {!running && answer.finish && <Figure name="ended" value={answer.finish} />}
      </dl>
      {!running && answer.text && <Copy text={answer.text} label="Copy text" />}
    </div>
  );
}

function Figure({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}
