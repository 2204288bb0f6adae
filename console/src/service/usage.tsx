import { useState } from "preact/hooks";
import { download, get, type Key, may } from "../lib/api";
import { Chart } from "../parts/chart";
import { Card, count, Problem, Table, Tabs, TextInput, useLoaded } from "../parts/controls";
import { money, NeedsScope, Stat } from "./account";

interface Row {
  day: string;
  key: string;
  model: string;
  requests: number;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  amount: string;
}

const WAYS = ["day", "key", "model"] as const;
type Way = (typeof WAYS)[number];

export function Usage() {
  const today = new Date().toISOString().slice(0, 10);
  const [from, setFrom] = useState(`${today.slice(0, 8)}01`);
  const [to, setTo] = useState(today);
  const [by, setBy] = useState<Way>("day");
  const [error, setError] = useState<unknown>();
  const span = `from=${from}&to=${to}`;
  const usage = useLoaded(() => get<{ data: Row[] }>(`/v1/usage?${span}`), [span], 15_000);
  const keys = useLoaded(() => get<{ data: Key[] }>("/v1/keys"), []);
  if (!may("manage")) return <NeedsScope scope="manage" what="Usage" />;
  const rows = usage.data?.data ?? [];
  const nameOf = (row: Row) => (by === "key" ? (keys.data?.data.find((key) => key.id === row.key)?.name || row.key) : row[by]);
  const groups = by === "day" ? daysBetween(from, to) : [...new Set(rows.map(nameOf))];
  const sum = (group: string, value: (row: Row) => number) => rows.filter((row) => nameOf(row) === group).reduce((all, row) => all + value(row), 0);
  const total = (value: (row: Row) => number) => rows.reduce((all, row) => all + value(row), 0);
  const save = () => download(`/v1/usage?${span}&format=csv`, `usage-${from}-${to}.csv`).catch(setError);
  return (
    <div class="view">
      <h1>Usage</h1>
      <div class="row">
        <TextInput label="From" type="date" value={from} set={setFrom} max={to} />
        <TextInput label="To" type="date" value={to} set={setTo} min={from} />
        <Tabs label="Grouped by" names={WAYS} value={by} set={(name) => setBy(name as Way)} />
        <button type="button" onClick={() => void save()}>
          Save as CSV
        </button>
      </div>
      <Problem error={error ?? usage.error} />
      <dl class="numbers">
        <Stat name="Requests" value={count(total((row) => row.requests))} />
        <Stat name="Tokens in" value={count(total((row) => row.prompt_tokens))} />
        <Stat name="Tokens out" value={count(total((row) => row.completion_tokens))} />
        <Stat name="Cost" value={`$${money(String(+total((row) => +row.amount).toFixed(6)))}`} />
      </dl>
      {rows.length > 0 && (
        <div class="cards">
          <Card>
            <Chart
              title={`Tokens by ${by}`}
              bars
              stacked
              x={groups}
              series={[
                { name: "in", values: groups.map((group) => sum(group, (row) => row.prompt_tokens)) },
                { name: "out", values: groups.map((group) => sum(group, (row) => row.completion_tokens)) },
              ]}
            />
          </Card>
          <Card>
            <Chart title={`Cost by ${by}, dollars`} bars x={groups} series={[{ name: "dollars", values: groups.map((group) => sum(group, (row) => +row.amount)) }]} />
          </Card>
        </div>
      )}
      <Card title="By day, key and model">
        <Table
          caption="Usage"
          empty="Nothing was asked in these days."
          rows={rows}
          columns={[
            { name: "Day", cell: (row) => row.day },
            { name: "Key", cell: (row) => keys.data?.data.find((key) => key.id === row.key)?.name || row.key },
            { name: "Model", cell: (row) => row.model },
            { name: "Requests", number: true, cell: (row) => count(row.requests) },
            { name: "In", number: true, cell: (row) => count(row.prompt_tokens) },
            { name: "Cached", number: true, cell: (row) => count(row.cached_tokens) },
            { name: "Out", number: true, cell: (row) => count(row.completion_tokens) },
            { name: "Dollars", number: true, cell: (row) => row.amount },
          ]}
        />
      </Card>
    </div>
  );
}

function daysBetween(first: string, last: string): string[] {
  const days: string[] = [];
  for (let at = Date.parse(first); at <= Date.parse(last) && days.length < 400; at += 86_400_000) {
    days.push(new Date(at).toISOString().slice(0, 10));
  }
  return days;
}
