/** Calls of the service's own API. A signed-in page sends its cookie and repeats the session's token. */

import { signal } from "@preact/signals";

export interface Key {
  id: string;
  name: string;
  prefix: string;
  scopes: string[];
  created_at: string;
  expires_at: string | null;
  revoked_at: string | null;
  limits: Limits;
}

export interface Limits {
  requests_per_minute: number | null;
  tokens_per_minute: number | null;
  concurrency: number | null;
  budget: string | null;
}

export interface Session {
  accounts: boolean;
  version: string;
  sign_up?: boolean;
  key?: Key | null;
  organisation?: { id: string; name: string };
  csrf?: string;
}

/** Undefined until the service has said whether one must sign in. The token lives in this variable alone. */
export const session = signal<Session | undefined>(undefined);

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string = "",
    readonly retryAfter: number = 0,
  ) {
    super(message);
  }
}

export function may(scope: string): boolean {
  const now = session.value;
  return !!now && (!now.accounts || !!now.key?.scopes.includes(scope));
}

export function signedIn(): boolean {
  const now = session.value;
  return !!now && (!now.accounts || !!now.key);
}

export async function send(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  const csrf = session.value?.csrf;
  if (csrf) headers.set("X-CSRF-Token", csrf);
  let reply: Response;
  try {
    reply = await fetch(path, { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The service does not answer. Is it running?");
  }
  if (reply.ok) return reply;
  if (reply.status === 401 && session.value?.key) void loadSession();
  throw await failure(reply);
}

async function failure(reply: Response): Promise<ApiError> {
  const retry = Number(reply.headers.get("retry-after") ?? 0);
  try {
    const { error } = await reply.json();
    return new ApiError(reply.status, error.message, error.code ?? "", retry);
  } catch {
    return new ApiError(reply.status, `The service answered ${reply.status}.`, "", retry);
  }
}

export async function get<T>(path: string): Promise<T> {
  return (await send(path)).json();
}

export async function post<T>(path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  return (await postRaw(path, body, signal)).json();
}

export function postRaw(path: string, body: unknown = {}, signal?: AbortSignal): Promise<Response> {
  return send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

export async function remove<T>(path: string): Promise<T> {
  return (await send(path, { method: "DELETE" })).json();
}

export async function upload<T>(path: string, fields: Record<string, string | File>): Promise<T> {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return (await send(path, { method: "POST", body: form })).json();
}

export async function loadSession(): Promise<void> {
  session.value = await (await fetch("/console/session", { credentials: "same-origin" })).json();
}

export async function signIn(key: string): Promise<void> {
  session.value = await post<Session>("/console/session", { key });
}

export async function signOut(): Promise<void> {
  session.value = await remove<Session>("/console/session");
}

/** Saves what an address answers: a link could not send the session's token. */
export async function download(path: string, name: string): Promise<void> {
  const content = await (await send(path)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The objects of a stream of server-sent events up to [DONE]. An error in the stream is thrown. */
export async function* events(reply: Response): AsyncGenerator<any> {
  const reader = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, "The service broke the answer off.");
    held += value;
    let end: number;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message, chunk.error.code ?? "");
      yield chunk;
    }
  }
}
