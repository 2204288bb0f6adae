import { readiness } from "../lib/models";
import type { Asking } from "./use_answer";

export function RunButtons({ asking, run, label, ready = true }: { asking: Pick<Asking, "running" | "stop">; run: () => void; label: string; ready?: boolean }) {
  return (
    <div class="actions">
      {asking.running ? (
        <button type="button" onClick={asking.stop}>
          Stop
        </button>
      ) : (
        <button type="button" class="primary" disabled={!ready || readiness.value !== "ready"} onClick={run}>
          {label}
        </button>
      )}
    </div>
  );
}
