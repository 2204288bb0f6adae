import { get, type Limits, may, session } from "../lib/api";
import { Card, count, Problem, useLoaded, when } from "../parts/controls";

export interface AccountState {
  id: string;
  name: string;
  plan: string;
  created_at: string;
  free_tokens: number;
  granted_tokens: number;
  used_tokens: number;
  spent_this_month: string;
  limits: Limits;
}

export function Account() {
  const { data, error } = useLoaded(() => get<AccountState>("/v1/accounts"), [], 10_000);
  if (!may("manage")) return <NeedsScope scope="manage" what="The organisation's account" />;
  return (
    <div class="view">
      <h1>{session.value?.organisation?.name ?? "Organisation"}</h1>
      <Problem error={error} />
      {data && (
        <>
          <dl class="numbers">
            <Stat name="Free tokens left" value={count(data.free_tokens)} />
            <Stat name="Tokens used" value={count(data.used_tokens)} />
            <Stat name="Spent this month" value={`$${money(data.spent_this_month)}`} />
            <Stat name="Plan" value={data.plan} />
          </dl>
          <Card title="Free tokens">
            <progress max={Math.max(1, data.granted_tokens)} value={data.free_tokens} aria-label="Free tokens left" />
            <p class="hint">
              {count(data.free_tokens)} of {count(data.granted_tokens)} granted tokens are left.
            </p>
          </Card>
          <Card title="Limits and budget">
            <LimitsList limits={data.limits} spent={data.spent_this_month} />
            <p class="hint">
              Whoever runs the service sets them: <code>vermilion accounts limits {data.id}</code>. A key may have tighter ones of its own.
            </p>
          </Card>
          <p class="hint">
            {data.id} · since {when(data.created_at)} · signed in with {session.value?.key?.prefix} (
            {session.value?.key?.scopes.join(", ")})
          </p>
        </>
      )}
    </div>
  );
}

function LimitsList({ limits, spent }: { limits: Limits; spent: string }) {
  const none = "no limit";
  const shown = (value: number | null) => (value === null ? none : count(value));
  return (
    <dl class="numbers">
      <Stat name="Requests a minute" value={shown(limits.requests_per_minute)} />
      <Stat name="Tokens a minute" value={shown(limits.tokens_per_minute)} />
      <Stat name="Requests at once" value={shown(limits.concurrency)} />
      <Stat name="Budget a month" value={limits.budget === null ? none : `$${money(spent)} of $${limits.budget}`} />
    </dl>
  );
}

export function Stat({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

export function NeedsScope({ scope, what }: { scope: string; what: string }) {
  return (
    <div class="view">
      <h1>Not with this key</h1>
      <p class="notice">
        {what} needs a key with the scope {scope}. Sign out and sign in with one that has it.
      </p>
    </div>
  );
}

/** At least cents, and no more digits than the amount has. */
export function money(exact: string): string {
  const [whole, part = ""] = exact.split(".");
  return `${whole}.${part.slice(0, 6).padEnd(2, "0")}`;
}
