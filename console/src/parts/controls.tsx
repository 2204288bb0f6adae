/** Small pieces that every view is made of. */

import type { ComponentChildren, ComponentProps } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { ApiError } from "../lib/api";

type InputAttributes = Omit<ComponentProps<"input">, "value" | "label" | "hidden">;

interface Labelled {
  label: string;
  hint?: string;
  hidden?: boolean;
}

function Row({ label, hint, hidden, id, children }: Labelled & { id: string; children: ComponentChildren }) {
  return (
    <div class="field">
      <label for={id} class={hidden ? "sr" : ""}>
        {label}
      </label>
      {children}
      {hint && (
        <p class="hint" id={`${id}-hint`}>
          {hint}
        </p>
      )}
    </div>
  );
}

export function TextInput(
  props: Labelled & { value: string; set: (value: string) => void } & InputAttributes,
) {
  const { label, hint, hidden, set, ...rest } = props;
  const id = useId();
  return (
    <Row {...{ label, hint, hidden, id }}>
      <input
        id={id}
        type="text"
        aria-describedby={hint ? `${id}-hint` : undefined}
        {...(rest as object)}
        onInput={(event: any) => set(event.currentTarget.value)}
      />
    </Row>
  );
}

export function TextArea(
  props: Labelled & { value: string; set: (value: string) => void; rows?: number; code?: boolean; error?: string; placeholder?: string; send?: () => void; area?: { current: HTMLTextAreaElement | null } },
) {
  const { label, hint, hidden, set, code, error, send, area, ...rest } = props;
  const id = useId();
  return (
    <Row {...{ label, hint, hidden, id }}>
      <textarea
        id={id}
        ref={area}
        class={code ? "code" : ""}
        spellcheck={!code}
        aria-invalid={error ? "true" : undefined}
        aria-describedby={error ? `${id}-error` : hint ? `${id}-hint` : undefined}
        {...rest}
        onInput={(event) => set(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (send && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            send();
          }
        }}
      />
      {error && (
        <p class="error-text" id={`${id}-error`}>
          {error}
        </p>
      )}
    </Row>
  );
}

export function Select(
  props: Labelled & { value: string; set: (value: string) => void; options: readonly (string | readonly [string, string])[] },
) {
  const id = useId();
  return (
    <Row {...props} id={id}>
      <select
        id={id}
        value={props.value}
        aria-describedby={props.hint ? `${id}-hint` : undefined}
        onChange={(event) => props.set(event.currentTarget.value)}
      >
        {props.options.map((option) => {
          const [value, text] = typeof option === "string" ? [option, option] : option;
          return (
            <option key={value} value={value}>
              {text}
            </option>
          );
        })}
      </select>
    </Row>
  );
}

export function Check({ label, value, set }: { label: string; value: boolean; set: (value: boolean) => void }) {
  return (
    <label class="check">
      <input type="checkbox" checked={value} onChange={(event) => set(event.currentTarget.checked)} /> {label}
    </label>
  );
}

export function Card({ title, children, actions }: { title?: string; children: ComponentChildren; actions?: ComponentChildren }) {
  return (
    <section class="card">
      {(title || actions) && (
        <div class="card-head">
          {title && <h2>{title}</h2>}
          {actions}
        </div>
      )}
      {children}
    </section>
  );
}

export function Problem({ error }: { error: unknown }) {
  if (!error) return null;
  const text = error instanceof Error ? error.message : String(error);
  const wait = error instanceof ApiError && error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return (
    <p class="notice bad" role="alert">
      {text}
      {wait}
    </p>
  );
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    setDone(true);
    setTimeout(() => setDone(false), 1600);
  };
  return (
    <button type="button" class="small" onClick={copy}>
      <span aria-live="polite">{done ? "Copied" : label}</span>
    </button>
  );
}

export function Tabs({ names, value, set, label }: { names: readonly string[]; value: string; set: (name: string) => void; label: string }) {
  return (
    <div class="tabs" role="group" aria-label={label}>
      {names.map((name) => (
        <button key={name} type="button" aria-pressed={name === value} onClick={() => set(name)}>
          {name}
        </button>
      ))}
    </div>
  );
}

export interface Column<T> {
  name: string;
  cell: (row: T) => ComponentChildren;
  number?: boolean;
}

export function Table<T>({ caption, rows, columns, empty }: { caption: string; rows: readonly T[]; columns: readonly Column<T>[]; empty: string }) {
  if (!rows.length) return <p class="empty">{empty}</p>;
  return (
    <div class="table" role="region" aria-label={caption} tabIndex={0}>
      <table>
        <caption class="sr">{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column.name} scope="col" class={column.number ? "number" : ""}>
                {column.name || <span class="sr">Actions</span>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, index) => (
            <tr key={index}>
              {columns.map((column) => (
                <td key={column.name} class={column.number ? "number" : ""}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** A button that asks once more before it does what cannot be undone. */
export function Confirm({ label, question, run }: { label: string; question: string; run: () => void }) {
  const [asking, setAsking] = useState(false);
  if (!asking) {
    return (
      <button type="button" class="small" onClick={() => setAsking(true)}>
        {label}
      </button>
    );
  }
  return (
    <span class="confirm">
      <button
        type="button"
        class="small danger"
        onClick={() => {
          setAsking(false);
          run();
        }}
      >
        {question}
      </button>
      <button type="button" class="small" onClick={() => setAsking(false)}>
        Keep
      </button>
    </span>
  );
}

export interface Loaded<T> {
  data?: T;
  error?: unknown;
  reload: () => void;
}

/** What `load` gives, again after every `everyMs`, and after `reload`. */
export function useLoaded<T>(load: () => Promise<T>, dependencies: unknown[], everyMs = 0): Loaded<T> {
  const [state, setState] = useState<{ data?: T; error?: unknown }>({});
  const [round, setRound] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    let live = true;
    let timer = 0;
    const run = async () => {
      try {
        const data = await latest.current();
        if (live) setState({ data });
      } catch (error) {
        if (live) setState((before) => ({ data: before.data, error }));
      }
      if (live && everyMs) timer = window.setTimeout(run, everyMs);
    };
    void run();
    return () => {
      live = false;
      clearTimeout(timer);
    };
  }, [...dependencies, round, everyMs]);
  return { ...state, reload: () => setRound((before) => before + 1) };
}

export const count = (value: number) => value.toLocaleString("en");
export const when = (time: number | string | null | undefined) =>
  time == null ? "–" : new Date(typeof time === "number" ? time * 1000 : time).toISOString().slice(0, 16).replace("T", " ");
export const size = (bytes: number) =>
  bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
