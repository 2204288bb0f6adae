/** One frame of an answer: settled text, drafts, masks and revised tokens, tinted by confidence. */

import { useEffect, useState } from "preact/hooks";
import type { Frame, Token } from "../lib/frames";

const WORDS = { settled: "settled", filled: "draft", masked: "masked, a guess", edited: "revised, may still change" };

/** 0 for doubtful to 4 for sure. */
export function level(confidence: number): number {
  return [0.25, 0.5, 0.75, 0.9].findLastIndex((limit) => confidence >= limit) + 1;
}

interface Piece {
  text: string;
  token?: Token;
}

/** The text in pieces, one a token; text that no token covers stands alone. */
export function pieces(frame: Frame): Piece[] {
  const found: Piece[] = [];
  let at = 0;
  const cut = (end: number) => frame.letters.slice(at, end).join("");
  for (const token of frame.tokens) {
    if (token.start >= frame.letters.length) break;
    if (token.start > at) found.push({ text: cut(token.start) });
    at = Math.max(at, token.start);
    found.push({ text: cut(token.end), token });
    at = token.end;
  }
  if (at < frame.letters.length) found.push({ text: cut(frame.letters.length) });
  return found;
}

export function CanvasView({ frame, label, running }: { frame: Frame | undefined; label: string; running?: boolean }) {
  const [selected, setSelected] = useState(-1);
  const shown = frame ? pieces(frame) : [];
  useEffect(() => setSelected(-1), [running]);
  const move = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !shown.length) return;
    event.preventDefault();
    setSelected((before) => Math.min(shown.length - 1, Math.max(0, before + step)));
  };
  const picked = shown[selected];
  return (
    <div class="canvas-box">
      <div
        class="canvas"
        tabIndex={0}
        role="group"
        aria-label={`${label}. Arrow keys go through the tokens.`}
        onKeyDown={move}
        onMouseLeave={() => setSelected(-1)}
      >
        {shown.map(({ text, token }, index) => (
          <span
            key={token ? token.start : `plain${index}`}
            class={token ? `t ${token.state} c${level(token.confidence)}${token.revised ? " revised" : ""}${index === selected ? " picked" : ""}` : "t"}
            data-state={token?.state}
            onMouseEnter={() => setSelected(index)}
          >
            {text}
          </span>
        ))}
        {running && <span class="caret" aria-hidden="true" />}
      </div>
      <p class="token-line" aria-live="polite">
        {picked?.token ? (
          <>
            <code>{JSON.stringify(picked.text)}</code> {WORDS[picked.token.state]} · confidence{" "}
            {(picked.token.confidence * 100).toFixed(1)} % · pass {picked.token.pass}
            {picked.token.revised ? " · revised" : ""}
          </>
        ) : (
          " "
        )}
      </p>
    </div>
  );
}

export function Legend() {
  return (
    <p class="legend">
      <span class="t settled c4">≥ 90 % sure</span>
      <span class="t settled c3">≥ 75 %</span>
      <span class="t settled c2">≥ 50 %</span>
      <span class="t settled c1">≥ 25 %</span>
      <span class="t settled c0">doubtful</span>
      <span class="t filled c4">draft</span>
      <span class="t masked">masked</span>
      <span class="t settled revised">revised</span>
    </p>
  );
}
