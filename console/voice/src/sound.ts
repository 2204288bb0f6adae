/** Microphone and loudspeaker of a call, for both transports. */

import type { Tracks } from "@pipecat-ai/client-js";
import { WavMediaManager } from "@pipecat-ai/websocket-transport";

const PLAYED_HZ = 24_000;
const HEARD_HZ = 16_000;

/** Why nobody can be heard, and what to do, in words for whoever wants to talk. */
export async function microphoneProblem(): Promise<string> {
  if (!navigator.mediaDevices?.getUserMedia) {
    return withoutMicrophone(
      "A browser gives its microphone only to pages of this computer or behind https.",
      "open this page at http://localhost, or put TLS in front of it.",
    );
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    for (const track of stream.getTracks()) track.stop();
    return "";
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    const again = "hang up and start the call again.";
    if (name === "NotAllowedError") {
      return withoutMicrophone("The microphone was refused.", `allow it for this page in the browser's address bar, ${again}`);
    }
    if (name === "NotFoundError") return withoutMicrophone("No microphone was found.", `connect one, ${again}`);
    if (name === "NotReadableError") {
      return withoutMicrophone("Another program has the microphone.", `close it there, ${again}`);
    }
    return withoutMicrophone(`The microphone cannot be used (${name || error}).`, `try another browser or microphone, ${again}`);
  }
}

function withoutMicrophone(what: string, remedy: string): string {
  return `${what} The call goes on without it: type what you would say. To speak, ${remedy}`;
}

/** pipecat's recorder and player. A WebSocket's sound comes at the rate of the voice, which the player does not know. */
export class Sound extends WavMediaManager {
  private turn = 0;
  private last = 0;
  /** Place of the next sample to play, behind `last`, in samples of the voice. */
  private place = 0;

  private silence: AudioContext | null = null;
  private silent: MediaStreamTrack | null = null;

  /** Without `hears` the caller types, and the microphone is left alone. */
  constructor(
    private spokenHz: number,
    private hears: boolean,
  ) {
    super(undefined, HEARD_HZ);
  }

  override async initialize(): Promise<void> {
    if (!this.hears) {
      await this.beSilent();
      return;
    }
    await super.initialize();
    // The recorder asks for the devices behind our back, and fails where it has been closed meanwhile.
    await this.getAllMics().catch(() => []);
  }

  /** WebRTC's server waits for sound, which here is silence. Whatever records would ask for the microphone. */
  private async beSilent(): Promise<void> {
    this.silence = new AudioContext();
    this.silent = this.silence.createMediaStreamDestination().stream.getAudioTracks()[0] ?? null;
    const { _wavStreamPlayer: player } = this as unknown as { _wavStreamPlayer: { connect(): Promise<unknown> } };
    // It plays what comes over a WebSocket, and only pages that are secure may have it.
    await player.connect().catch(() => {});
  }

  override async connect(): Promise<void> {
    if (this.hears) await super.connect();
  }

  override tracks(): Tracks {
    return this.silent ? { local: { audio: this.silent } } : super.tracks();
  }

  override async disconnect(): Promise<void> {
    if (this.hears) return super.disconnect();
    this.silent?.stop();
    await this.silence?.close();
    await this.interrupt();
  }

  /** Whether the caller is heard. A closed microphone goes on as silence, so that the end of a turn is noticed. */
  open(heard: boolean): void {
    for (const track of [this.tracks().local.audio]) if (track) track.enabled = heard;
  }

  override bufferBotAudio(data: ArrayBuffer | Int16Array): Int16Array {
    const spoken = data instanceof Int16Array ? data : new Int16Array(data);
    // The player drops for good what belongs to an answer that was interrupted.
    return super.bufferBotAudio(this.resampled(spoken), `turn-${this.turn}`);
  }

  async interrupt(): Promise<void> {
    this.turn += 1;
    await this.userStartedSpeaking();
  }

  /** Straight lines between samples; a piece begins where the one before ended. */
  private resampled(spoken: Int16Array): Int16Array {
    const step = this.spokenHz / PLAYED_HZ;
    const at = (index: number) => (index < 0 ? this.last : (spoken[index] ?? 0));
    const played = [];
    for (; this.place <= spoken.length - 1; this.place += step) {
      const before = Math.ceil(this.place) - 1;
      const share = this.place - before;
      played.push(Math.round(at(before) * (1 - share) + at(before + 1) * share));
    }
    if (spoken.length) {
      this.last = spoken[spoken.length - 1]!;
      this.place -= spoken.length;
    }
    return Int16Array.from(played);
  }
}
