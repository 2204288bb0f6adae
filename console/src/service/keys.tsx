import { useState } from "preact/hooks";
import { get, type Key, may, post, remove, session } from "../lib/api";
import { Card, Check, Confirm, Copy, count, Problem, Table, TextInput, useLoaded, when } from "../parts/controls";
import { NeedsScope } from "./account";

const SCOPES = [
  ["generate", "every route of a model"],
  ["jobs", "files and fine-tuning"],
  ["manage", "keys, usage, invoices"],
] as const;

export function Keys() {
  const keys = useLoaded(() => get<{ data: Key[] }>("/v1/keys"), []);
  const [made, setMade] = useState<Key & { secret: string }>();
  const [error, setError] = useState<unknown>();
  if (!may("manage")) return <NeedsScope scope="manage" what="Managing keys" />;
  const revoke = async (id: string) => {
    try {
      await remove(`/v1/keys/${id}`);
      keys.reload();
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <div class="view">
      <h1>Keys</h1>
      {made && (
        <section class="notice once" role="status">
          <p>
            The key “{made.name || made.prefix}” is shown this once. Copy it now; here only its hash is kept.
          </p>
          <code class="secret">{made.secret}</code>
          <div class="actions">
            <Copy text={made.secret} label="Copy key" />
            <button type="button" class="small" onClick={() => setMade(undefined)}>
              Done
            </button>
          </div>
        </section>
      )}
      <Problem error={error ?? keys.error} />
      <NewKey
        done={(key) => {
          setMade(key);
          keys.reload();
        }}
      />
      <Card title="Your keys">
        <Table
          caption="Keys"
          empty="No keys yet."
          rows={keys.data?.data ?? []}
          columns={[
            { name: "Name", cell: (key) => key.name || "–" },
            { name: "Key", cell: (key) => <code>{key.prefix}</code> },
            { name: "Scopes", cell: (key) => key.scopes.join(", ") },
            { name: "Limits", cell: limits },
            { name: "Created", cell: (key) => when(key.created_at) },
            { name: "Expires", cell: (key) => (key.expires_at ? when(key.expires_at) : "never") },
            {
              name: "State",
              cell: (key) =>
                key.revoked_at ? (
                  <span class="badge bad">revoked</span>
                ) : key.id === session.value?.key?.id ? (
                  <span class="badge good">this session</span>
                ) : (
                  <Confirm label={`Revoke ${key.name || key.prefix}`} question="Revoke for good" run={() => void revoke(key.id)} />
                ),
            },
          ]}
        />
      </Card>
    </div>
  );
}

function limits({ limits }: Key): string {
  const told = [
    limits.requests_per_minute && `${count(limits.requests_per_minute)} requests/min`,
    limits.tokens_per_minute && `${count(limits.tokens_per_minute)} tokens/min`,
    limits.concurrency && `${limits.concurrency} at once`,
    limits.budget && `$${limits.budget}/month`,
  ];
  return told.filter(Boolean).join(", ") || "the organisation's";
}

function NewKey({ done }: { done: (key: Key & { secret: string }) => void }) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState<string[]>(["generate"]);
  const [expires, setExpires] = useState("");
  const [requests, setRequests] = useState("");
  const [tokens, setTokens] = useState("");
  const [budget, setBudget] = useState("");
  const [error, setError] = useState<unknown>();
  const make = async () => {
    setError(undefined);
    try {
      const key = await post<Key & { secret: string }>("/v1/keys", {
        name,
        scopes,
        ...(expires ? { expires_at: `${expires}T00:00:00Z` } : {}),
        ...(requests ? { requests_per_minute: Math.round(+requests) } : {}),
        ...(tokens ? { tokens_per_minute: Math.round(+tokens) } : {}),
        ...(budget ? { budget } : {}),
      });
      setName("");
      done(key);
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <Card title="New key">
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void make();
        }}
      >
        <div class="row">
          <TextInput label="Name" value={name} set={setName} placeholder="laptop" />
          <TextInput label="Expires" type="date" value={expires} set={setExpires} />
          <TextInput label="Requests a minute" type="number" min={1} value={requests} set={setRequests} />
          <TextInput label="Tokens a minute" type="number" min={1} value={tokens} set={setTokens} />
          <TextInput label="Dollars a month" inputMode="decimal" value={budget} set={setBudget} />
        </div>
        <p class="hint">What is left empty is the organisation's.</p>
        <fieldset>
          <legend>What it may do</legend>
          {SCOPES.map(([scope, meaning]) => (
            <Check
              key={scope}
              label={`${scope}: ${meaning}`}
              value={scopes.includes(scope)}
              set={(on) => setScopes(on ? [...scopes, scope] : scopes.filter((one) => one !== scope))}
            />
          ))}
        </fieldset>
        <button type="submit" class="primary" disabled={!scopes.length}>
          Make the key
        </button>
      </form>
      <Problem error={error} />
    </Card>
  );
}
