/** An answer as the service shows it pass by pass. Offsets of the wire count code points, not UTF-16 units. */

import { events, postRaw } from "./api";

export type State = "settled" | "filled" | "masked" | "edited";

export interface Token {
  start: number;
  end: number;
  state: State;
  confidence: number;
  pass: number;
  /** A token that stood here before was taken back. */
  revised: boolean;
}

export interface Frame {
  /** Code points of the whole text. */
  letters: string[];
  tokens: Token[];
  pass: number;
  progress: number;
  /** Milliseconds since the request was sent. */
  at: number;
  numSettled: number;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens: number };
  diffusion?: {
    passes: number;
    tokens_per_pass: number;
    edits: number;
    drafted_tokens: number;
    accepted_tokens: number;
  };
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface Answer {
  frames: Frame[];
  text: string;
  calls: ToolCall[];
  usage?: Usage;
  finish: string;
  seconds: number;
  firstText?: number;
  /** What the service left out of a schema. */
  ignored: string;
}

type Row = [number, number, State, number, number];

/** Reads one streamed answer; `show` is called with what there is of it after every pass. */
export async function ask(
  path: string,
  body: Record<string, unknown>,
  show: (answer: Answer) => void,
  signal?: AbortSignal,
): Promise<Answer> {
  const began = performance.now();
  const asked = { ...body, stream: true, diffusing: "tokens", stream_options: { include_usage: true } };
  const reply = await postRaw(path, asked, signal);
  const answer: Answer = {
    frames: [],
    text: "",
    calls: [],
    finish: "",
    seconds: 0,
    ignored: reply.headers.get("x-schema-ignored") ?? "",
  };
  for await (const chunk of events(reply)) {
    if (chunk.usage) answer.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    for (const call of choice.delta?.tool_calls ?? []) addCall(answer.calls, call);
    if (choice.finish_reason) answer.finish = choice.finish_reason;
    const meta = chunk.diffusion_meta;
    if (!meta) continue;
    const at = performance.now() - began;
    const text: string = choice.delta?.content ?? choice.text ?? "";
    const frame = nextFrame(answer.frames.at(-1), text, meta, at);
    if (frame.numSettled && answer.firstText === undefined) answer.firstText = at / 1000;
    answer.frames.push(frame);
    answer.text = text;
    answer.seconds = at / 1000;
    show({ ...answer });
  }
  answer.seconds = (performance.now() - began) / 1000;
  show({ ...answer });
  return answer;
}

function nextFrame(before: Frame | undefined, text: string, meta: any, at: number): Frame {
  const kept = (before?.tokens ?? []).slice(0, meta.tokens.from);
  const letters = Array.from(text);
  const guesses = new Map(before?.tokens.slice(meta.tokens.from).map((token) => [token.start, token]));
  const tokens = [...kept, ...(meta.tokens.rows as Row[]).map((row) => readToken(row, letters, before, guesses.get(row[0])))];
  const numSettled = tokens.findLastIndex((token) => token.state === "settled") + 1;
  return { letters, tokens, pass: meta.pass, progress: meta.diffusion_progress, at, numSettled };
}

/** `guess` is what stood at the token's place in the frame before. */
function readToken([start, end, state, confidence, pass]: Row, letters: string[], before?: Frame, guess?: Token): Token {
  let revised = state === "edited";
  if (state === "settled" && guess && before) {
    const same = guess.end === end && letters.slice(start, end).join("") === before.letters.slice(start, end).join("");
    revised = guess.revised || !same;
  }
  return { start, end, state, confidence, pass, revised };
}

function addCall(calls: ToolCall[], delta: any): void {
  const call = (calls[delta.index] ??= { id: "", name: "", arguments: "" });
  if (delta.id) call.id = delta.id;
  if (delta.function?.name) call.name = delta.function.name;
  call.arguments += delta.function?.arguments ?? "";
}

/** Settled tokens a second up to a frame. */
export function speed(frame: Frame | undefined): number {
  return frame && frame.at > 0 ? frame.numSettled / (frame.at / 1000) : 0;
}
