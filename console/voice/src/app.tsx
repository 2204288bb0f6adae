/** The page: a call, its captions, how the answer settles, and how long each stage took. */

import { useEffect } from "preact/hooks";
import icon from "../../src/icon.svg";
import { theme, toggle } from "../../src/lib/theme";
import { agent, agentSpeaks, connection, hangUp, hears, listen, meet, microphone, news, phase, problem, start, talking, userSpeaks } from "./call";
import { Captions } from "./captions";
import { Latencies } from "./latencies";
import { Settling } from "./settling";

export function App() {
  useEffect(() => void meet(), []);
  useEffect(listenToTheSpaceBar, []);
  return (
    <>
      <header>
        <span class="brand">
          <img class="mark" src={icon} alt="" /> Vermilion voice
        </span>
        <button class="small" onClick={toggle}>
          {theme.value === "dark" ? "Light" : "Dark"}
        </button>
      </header>
      <main>
        <h1>Talk with {agent.value?.persona ?? "the agent"}</h1>
        <p class="muted">{agent.value && `${agent.value.recognizer} hears, ${agent.value.model} answers, ${agent.value.synthesizer} speaks.`}</p>
        <Controls />
        {problem.value && (
          <p class="notice bad" role="alert">
            {problem.value}
          </p>
        )}
        <p class="sr" role="status">
          {news.value}
        </p>
        <div class="columns">
          <Captions />
          <div class="side">
            <Settling />
            <Latencies />
          </div>
        </div>
      </main>
    </>
  );
}

function Controls() {
  const idle = phase.value === "idle";
  return (
    <section aria-label="Call" class="controls">
      {idle ? (
        <button class="primary" onClick={() => void start(true)}>
          Start the call
        </button>
      ) : (
        <button onClick={() => void hangUp("You hung up.")}>{phase.value === "connecting" ? "Cancel" : "Hang up"}</button>
      )}
      {phase.value === "ready" && hears.value && microphone.value === "push" && <PushToTalk />}
      <State />
      <div class="field">
        <label for="microphone">Microphone</label>
        <select
          id="microphone"
          value={microphone.value}
          disabled={phase.value === "ready" && !hears.value}
          onChange={(event) => choose(event.currentTarget.value === "push" ? "push" : "open")}
        >
          <option value="open">open</option>
          <option value="push">push to talk</option>
        </select>
      </div>
      <div class="field">
        <label for="connection">Connection</label>
        <select
          id="connection"
          value={connection.value}
          disabled={!idle}
          onChange={(event) => void (connection.value = event.currentTarget.value === "websocket" ? "websocket" : "webrtc")}
        >
          <option value="webrtc">WebRTC</option>
          <option value="websocket">WebSocket</option>
        </select>
      </div>
    </section>
  );
}

function choose(way: "open" | "push"): void {
  microphone.value = way;
  listen();
}

function press(down: boolean): void {
  talking.value = down;
  listen();
}

/** Held by a finger or with the space bar; Enter presses and lets go in turn, for whoever cannot hold. */
function PushToTalk() {
  return (
    <button
      class={talking.value ? "talk primary" : "talk"}
      aria-pressed={talking.value}
      onPointerDown={(event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        press(true);
      }}
      onPointerUp={() => press(false)}
      onPointerCancel={() => press(false)}
      onKeyDown={(event) => {
        if (event.key !== "Enter" || event.repeat) return;
        event.preventDefault();
        press(!talking.value);
      }}
    >
      {talking.value ? "Listening" : "Hold to talk (space bar)"}
    </button>
  );
}

function listenToTheSpaceBar() {
  const turn = (down: boolean) => (event: KeyboardEvent) => {
    const target = event.target as Element | null;
    const elsewhere = target?.closest("select, input, textarea, a, button:not(.talk)");
    if (event.key !== " " || elsewhere || microphone.value !== "push" || phase.value !== "ready" || !hears.value) return;
    event.preventDefault();
    if (!event.repeat) press(down);
  };
  const [pressed, released] = [turn(true), turn(false)];
  const left = () => talking.value && press(false);
  addEventListener("keydown", pressed);
  addEventListener("keyup", released);
  addEventListener("blur", left);
  return () => {
    removeEventListener("keydown", pressed);
    removeEventListener("keyup", released);
    removeEventListener("blur", left);
  };
}

function State() {
  let words = { idle: "No call", connecting: "Connecting", ready: "Listening" }[phase.value as string];
  if (phase.value === "ready" && microphone.value === "push" && !talking.value) words = "Microphone closed";
  if (phase.value === "ready" && !hears.value) words = "No microphone, type";
  if (agentSpeaks.value) words = "The agent speaks";
  if (userSpeaks.value) words = "You speak";
  const kind = userSpeaks.value ? "you" : agentSpeaks.value ? "agent" : phase.value;
  return (
    <span class={`state ${kind}`}>
      <span class="dot" aria-hidden="true" />
      {words}
    </span>
  );
}
