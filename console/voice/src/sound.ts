/** Microphone and loudspeaker of a call, for both transports. */

import { WavMediaManager } from "@pipecat-ai/websocket-transport";

const PLAYED_HZ = 24_000;
const HEARD_HZ = 16_000;

/** Why nobody can be heard, in words for whoever wants to talk. */
export async function microphoneProblem(): Promise<string> {
  if (!navigator.mediaDevices?.getUserMedia) {
    return "A browser gives its microphone only to pages of this computer or behind https. Open this page at http://localhost, or put TLS in front of it.";
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    for (const track of stream.getTracks()) track.stop();
    return "";
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    if (name === "NotAllowedError") {
      return "The microphone was refused. Allow it for this page in the browser's address bar, then start the call again.";
    }
    if (name === "NotFoundError") return "No microphone was found. Connect one, then start the call again.";
    if (name === "NotReadableError") return "Another program has the microphone. Close it there, then start the call again.";
    return `The microphone cannot be used (${name || error}).`;
  }
}

/** pipecat's recorder and player. A WebSocket's sound comes at the rate of the voice, which the player does not know. */
export class Sound extends WavMediaManager {
  private turn = 0;
  private last = 0;
  /** Place of the next sample to play, behind `last`, in samples of the voice. */
  private place = 0;

  constructor(private spokenHz: number) {
    super(undefined, HEARD_HZ);
  }

  override async initialize(): Promise<void> {
    await super.initialize();
    // The recorder asks for the devices behind our back, and fails where it has been closed meanwhile.
    await this.getAllMics().catch(() => []);
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
