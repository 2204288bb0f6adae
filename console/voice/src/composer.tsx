/** Turns that are typed, for whoever has no microphone or may not speak. */

import { useEffect, useRef, useState } from "preact/hooks";
import { hears, phase, say } from "./call";

const MOST_LETTERS = 2000;

export function Composer() {
  const [text, write] = useState("");
  const field = useRef<HTMLInputElement>(null);
  const mute = phase.value === "ready" && !hears.value;
  // Nothing but the field leads on.
  useEffect(() => void (mute && field.current?.focus()), [mute]);

  async function send(event: Event): Promise<void> {
    event.preventDefault();
    field.current?.focus();
    const said = text.trim();
    if (said && phase.value !== "connecting" && (await say(said))) write("");
  }

  return (
    <form class="composer" onSubmit={(event) => void send(event)}>
      <label for="typed">Type instead of speaking</label>
      <input
        id="typed"
        ref={field}
        value={text}
        onInput={(event) => write(event.currentTarget.value)}
        maxLength={MOST_LETTERS}
        autocomplete="off"
        enterKeyHint="send"
      />
      <button type="submit">Send</button>
    </form>
  );
}
