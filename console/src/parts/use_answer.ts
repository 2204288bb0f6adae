/** One running answer of a view, which the view can stop. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, type Answer } from "../lib/frames";

export interface Asking {
  answer: Answer | undefined;
  running: boolean;
  error: unknown;
  run: (path: string, body: Record<string, unknown>) => Promise<Answer | undefined>;
  stop: () => void;
  clear: () => void;
}

export function useAnswer(): Asking {
  const [answer, setAnswer] = useState<Answer>();
  const [running, setRunning] = useState(false);
  const [error, setError] = useState<unknown>();
  const control = useRef<AbortController | undefined>(undefined);
  useEffect(() => () => control.current?.abort(), []);
  const run = async (path: string, body: Record<string, unknown>) => {
    control.current?.abort();
    const own = (control.current = new AbortController());
    setError(undefined);
    setAnswer(undefined);
    setRunning(true);
    try {
      return await ask(path, body, setAnswer, own.signal);
    } catch (failure) {
      if (!own.signal.aborted) setError(failure);
      return undefined;
    } finally {
      if (control.current === own) setRunning(false);
    }
  };
  return {
    answer,
    running,
    error,
    run,
    stop: () => control.current?.abort(),
    clear: () => {
      setAnswer(undefined);
      setError(undefined);
    },
  };
}
