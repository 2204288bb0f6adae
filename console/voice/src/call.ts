/** One call: what the server tells of it, as the page shows it. */

import { LogLevel, PipecatClient, type BotOutputData, type RTVIMessage } from "@pipecat-ai/client-js";
import { SmallWebRTCTransport } from "@pipecat-ai/small-webrtc-transport";
import { ProtobufFrameSerializer, WebSocketTransport } from "@pipecat-ai/websocket-transport";
import { signal } from "@preact/signals";
import { Sound, microphoneProblem } from "./sound";

export type Connection = "webrtc" | "websocket";
export type Microphone = "open" | "push";
export type Phase = "idle" | "connecting" | "ready";

export interface Line {
  who: "you" | "agent";
  /** Parts of an answer by their number, as they are spoken. */
  parts: Map<number, string>;
  interrupted: boolean;
}

export interface Turn {
  /** Whether it was typed; then only the whole is known, from Enter to the answer's first sound. */
  typed?: boolean;
  stages_ms: Record<string, number>;
  total_ms: number;
}

type Span = [number, number];

export interface Canvas {
  text: string;
  settled: Span[];
  masked: Span[];
  edited: Span[];
  pass: number;
}

export interface Agent {
  model: string;
  persona: string;
  recognizer: string;
  synthesizer: string;
  sample_rate_out: number;
}

const WEBRTC_PATIENCE_MS = 8000;
const MOST_LINES = 200;

export const agent = signal<Agent | null>(null);
export const phase = signal<Phase>("idle");
export const connection = signal<Connection>("webrtc");
export const microphone = signal<Microphone>("open");
/** Whether this call has a microphone. */
export const hears = signal(false);
/** Whether push-to-talk is pressed. */
export const talking = signal(false);
export const userSpeaks = signal(false);
export const agentSpeaks = signal(false);
export const lines = signal<Line[]>([]);
export const turns = signal<Turn[]>([]);
export const canvas = signal<Canvas | null>(null);
/** What went wrong, and what to do. */
export const problem = signal("");
/** The last thing that happened, for those who do not see it. */
export const news = signal("");

let client: PipecatClient | null = null;
let sound: Sound | null = null;
/** Turns that were typed, until the server begins to answer them: what comes before belongs to an earlier answer. */
let typed: string[] = [];
let typedAt_ms: number | null = null;
const loudspeaker = new Audio();
loudspeaker.autoplay = true;

export async function meet(): Promise<void> {
  try {
    const reply = await fetch("api/status");
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    agent.value = await reply.json();
  } catch (error) {
    problem.value = `The voice server does not answer (${error}). Is vermilion voice running?`;
  }
}

/** `speaks`: with a microphone, where there is one; else the caller types. */
export async function start(speaks: boolean): Promise<void> {
  problem.value = "";
  phase.value = "connecting";
  if (!agent.value) await meet();
  if (!agent.value) {
    phase.value = "idle";
    return;
  }
  if (speaks) problem.value = await microphoneProblem();
  hears.value = speaks && !problem.value;
  await call();
}

async function call(): Promise<void> {
  lines.value = [];
  turns.value = [];
  canvas.value = null;
  try {
    await connect(connection.value);
  } catch (error) {
    await hangUp();
    if (connection.value === "websocket") {
      problem.value = `The call could not be made (${reason(error)}).`;
      return;
    }
    connection.value = "websocket";
    news.value = "WebRTC found no way; the call goes over a WebSocket.";
    phase.value = "connecting";
    await call();
  }
}

async function connect(over: Connection): Promise<void> {
  sound = new Sound(agent.value!.sample_rate_out, hears.value);
  const socket = new URL("ws?page=true", location.href);
  socket.protocol = socket.protocol.replace("http", "ws");
  const transport =
    over === "webrtc"
      ? new SmallWebRTCTransport({
          mediaManager: sound,
          iceServers: [],
          webrtcRequestParams: { endpoint: new URL("api/offer", location.href) },
        })
      : new WebSocketTransport({ mediaManager: sound, wsUrl: socket.href, serializer: frames(sound) });
  client = new PipecatClient({ transport, enableMic: hears.value, enableCam: false, callbacks: callbacks(over) });
  // Its debugging lines would quote what is said.
  client.setLogLevel(LogLevel.WARN);
  await client.initDevices();
  // Before anything can be heard of it.
  listen();
  await within(client.connect(), over === "webrtc" ? WEBRTC_PATIENCE_MS : 2 * WEBRTC_PATIENCE_MS);
  phase.value = "ready";
  news.value = "The call has begun.";
}

/** Frames of the WebSocket. The server also sends its interruptions, which pipecat's client does not know. */
function frames(player: Sound) {
  const known = new ProtobufFrameSerializer();
  return {
    serialize: (data: unknown) => known.serialize(data),
    serializeAudio: (data: ArrayBuffer, rate: number, channels: number) => known.serializeAudio(data, rate, channels),
    serializeMessage: (message: RTVIMessage) => known.serializeMessage(message),
    deserialize: async (data: unknown) => {
      try {
        return await known.deserialize(data);
      } catch {
        await player.interrupt();
        return { type: "raw" as const, message: null };
      }
    },
  };
}

function callbacks(over: Connection) {
  return {
    onUserStartedSpeaking: () => {
      userSpeaks.value = true;
      typedAt_ms = null;
    },
    onUserStoppedSpeaking: () => void (userSpeaks.value = false),
    onBotStartedSpeaking: () => {
      agentSpeaks.value = true;
      if (typedAt_ms === null || typed.length > 0) return;
      turns.value = [...turns.value, { typed: true, stages_ms: {}, total_ms: performance.now() - typedAt_ms }];
      typedAt_ms = null;
    },
    onBotStoppedSpeaking: () => void (agentSpeaks.value = false),
    onUserTranscript: (said: { text: string; final: boolean }) => said.final && heard(said.text),
    onBotOutput: spoken,
    onBotLlmStarted: () => {
      canvas.value = null;
      for (const text of typed) add({ who: "you", parts: new Map([[0, text]]), interrupted: false });
      typed = [];
    },
    onServerMessage: told,
    onTrackStarted: (track: MediaStreamTrack, participant?: { local: boolean }) => {
      if (over !== "webrtc" || participant?.local || track.kind !== "audio") return;
      loudspeaker.srcObject = new MediaStream([track]);
      loudspeaker.play().catch(() => (problem.value = "The browser plays no sound on this page; allow it in the address bar."));
    },
    onDisconnected: () => {
      if (phase.value === "ready") void hangUp("The call has ended.");
    },
    onError: (message: RTVIMessage) => {
      if (phase.value === "ready") void hangUp(`The call broke off (${reason(message.data)}).`);
    },
  };
}

export async function hangUp(why = ""): Promise<void> {
  const ending = client;
  client = null;
  phase.value = "idle";
  talking.value = userSpeaks.value = agentSpeaks.value = false;
  loudspeaker.srcObject = null;
  typed = [];
  typedAt_ms = null;
  if (why) news.value = why;
  await ending?.disconnect().catch(() => {});
  sound = null;
}

/** A typed turn; it begins a call without a microphone where there is none. Whether it was sent. */
export async function say(text: string): Promise<boolean> {
  if (phase.value === "idle") await start(false);
  if (phase.value !== "ready" || !client) return false;
  typed.push(text);
  typedAt_ms = performance.now();
  await client.sendText(text);
  return true;
}

/** Opens or closes the microphone as the settings and the button say. */
export function listen(): void {
  sound?.open(microphone.value === "open" || talking.value);
}

function add(line: Line): void {
  lines.value = [...lines.value.slice(1 - MOST_LINES), line];
}

function heard(text: string): void {
  const last = lines.value.at(-1);
  // A pause inside a sentence makes two transcripts of it.
  if (last?.who === "you") {
    last.parts.set(last.parts.size, text);
    lines.value = [...lines.value];
  } else add({ who: "you", parts: new Map([[0, text]]), interrupted: false });
}

function spoken(output: BotOutputData): void {
  if (output.will_be_spoken === false || !output.text) return;
  const last = lines.value.at(-1);
  const line: Line = last?.who === "agent" && !last.interrupted ? last : { who: "agent", parts: new Map(), interrupted: false };
  line.parts.set(output.segment_id ?? line.parts.size, output.text);
  if (line === last) lines.value = [...lines.value];
  else add(line);
}

function told(message: any): void {
  if (message.type === "latency") turns.value = [...turns.value, message];
  else if (message.type === "canvas") canvas.value = message;
  else if (message.type === "apology") news.value = `A stage failed (${message.stage}); the agent apologised.`;
  else if (message.type === "interrupted") {
    news.value = "You interrupted the agent.";
    agentSpeaks.value = false;
    const answer = lines.value.findLast((line) => line.who === "agent");
    if (answer) answer.interrupted = true;
    lines.value = [...lines.value];
  }
}

function within<Result>(work: Promise<Result>, patience_ms: number): Promise<Result> {
  const late = new Promise<never>((_, reject) => setTimeout(() => reject(new Error("no answer in time")), patience_ms));
  return Promise.race([work, late]);
}

function reason(error: unknown): string {
  const known = error as { message?: string; error?: string } | undefined;
  return known?.message || known?.error || String(error);
}
