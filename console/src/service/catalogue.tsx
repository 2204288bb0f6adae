import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, events, get, may, post, postRaw } from "../lib/api";
import { Card, Check, Confirm, count, Problem, size, Table, TextInput, useLoaded } from "../parts/controls";

interface Published {
  name: string;
  family: string | null;
  parameters: number | null;
  licence: string | null;
  context_length: number | null;
  description: string;
  supported: boolean;
  reason: string | null;
  memory_bytes: Record<string, number>;
  fits: Record<string, boolean | null>;
  on_disk: boolean;
  size_bytes: number;
  state: string;
  served: boolean;
}

interface Listed {
  machine: { memory_bytes: number; gpu_memory_bytes: number; budget_bytes: number; used_bytes: number };
  data: Published[];
}

interface Pulling {
  name: string;
  completed: number;
  total: number;
}

/** What can be pulled, whether this machine has room for it, and what is in memory. */
export function Catalogue({ changed }: { changed: () => void }) {
  const listed = useLoaded(() => get<Listed>("/v1/catalogue"), [], 5000);
  const [wanted, setWanted] = useState("");
  const [every, setEvery] = useState(false);
  const [pulling, setPulling] = useState<Pulling>();
  const [busy, setBusy] = useState("");
  const [error, setError] = useState<unknown>();
  const control = useRef<AbortController | undefined>(undefined);
  useEffect(() => () => control.current?.abort(), []);
  if (listed.error instanceof ApiError && listed.error.status === 404) return null;
  const operator = may("operate");
  const done = () => {
    listed.reload();
    changed();
  };
  const pull = async (name: string) => {
    setError(undefined);
    control.current = new AbortController();
    setPulling({ name, completed: 0, total: 0 });
    try {
      for await (const step of events(await postRaw("/v1/models/pull", { model: name }, control.current.signal))) {
        if (step.status === "pulling") setPulling({ name, completed: step.completed, total: step.total });
      }
      done();
    } catch (failure) {
      if (!control.current.signal.aborted) setError(failure);
    }
    setPulling(undefined);
  };
  const act = async (what: "load" | "unload", model: string) => {
    setError(undefined);
    setBusy(model);
    try {
      await post(`/v1/models/${what}`, { model });
      done();
    } catch (failure) {
      setError(failure);
    }
    setBusy("");
  };
  const machine = listed.data?.machine;
  const all = listed.data?.data ?? [];
  const rows = all.filter((row) => (every || row.supported) && `${row.name} ${row.family ?? ""}`.toLowerCase().includes(wanted.toLowerCase()));
  return (
    <Card title="Catalogue">
      {machine && (
        <p class="hint">
          This machine has {size(machine.memory_bytes)} of memory{machine.gpu_memory_bytes ? ` and ${size(machine.gpu_memory_bytes)} on its GPU` : ""};
          models take {size(machine.used_bytes)} of a budget of {size(machine.budget_bytes)}.
        </p>
      )}
      <div class="row">
        <TextInput label="Look for a model, or name one of the hub (owner/name)" value={wanted} set={setWanted} placeholder="llada" />
        {operator && wanted.includes("/") && (
          <button type="button" disabled={!!pulling} onClick={() => void pull(wanted)}>
            Pull {wanted}
          </button>
        )}
      </div>
      <Check label="Those too that this version does not run" value={every} set={setEvery} />
      <Problem error={error ?? listed.error} />
      {pulling && (
        <div role="status" class="row">
          <span>
            Pulling {pulling.name}: {size(pulling.completed)}
            {pulling.total ? ` of ${size(pulling.total)}` : ""}
          </span>
          <progress max={Math.max(1, pulling.total)} value={pulling.completed} aria-label={`Pulled of ${pulling.name}`} />
          <button type="button" class="small" onClick={() => control.current?.abort()}>
            Stop
          </button>
        </div>
      )}
      <Table
        caption="Catalogue"
        empty="No model of that name."
        rows={rows}
        columns={[
          { name: "Name", cell: (row) => <code>{row.name}</code> },
          {
            name: "State",
            cell: (row) =>
              row.supported ? <span class={`badge ${row.state === "loaded" ? "good" : ""}`}>{row.state.replaceAll("_", " ")}</span> : <span class="hint wrap">{row.reason}</span>,
          },
          {
            name: "",
            cell: (row) =>
              !operator || !row.supported ? null : row.state === "loaded" ? (
                <Confirm label={`Unload ${row.name}`} question="Take it out of memory" run={() => void act("unload", row.name)} />
              ) : row.on_disk ? (
                <button type="button" class="small" disabled={!!busy} onClick={() => void act("load", row.name)}>
                  {busy === row.name ? "Loading …" : `Load ${row.name}`}
                </button>
              ) : (
                <button type="button" class="small" disabled={!!pulling} onClick={() => void pull(row.name)}>
                  Pull {row.name}
                </button>
              ),
          },
          { name: "Memory here", cell: (row) => <Fit row={row} /> },
          { name: "Download", number: true, cell: (row) => (row.size_bytes ? size(row.size_bytes) : "–") },
          { name: "Parameters", number: true, cell: (row) => (row.parameters ? billions(row.parameters) : "–") },
          { name: "Context", number: true, cell: (row) => (row.context_length ? count(row.context_length) : "–") },
          { name: "Family", cell: (row) => row.family ?? "–" },
          { name: "Licence", cell: (row) => row.licence ?? "–" },
        ]}
      />
    </Card>
  );
}

/** The largest format of the weights that this machine has room for. */
function Fit({ row }: { row: Published }) {
  const kinds = Object.entries(row.memory_bytes).sort(([, one], [, other]) => other - one);
  const best = kinds.find(([kind]) => row.fits[kind]);
  const [kind, bytes] = best ?? kinds.at(-1) ?? [];
  if (!kind || bytes === undefined) return <>–</>;
  return <span class={`badge ${best ? "good" : "bad"}`}>{`${best ? "fits as" : "too large, even as"} ${kind}, ${size(bytes)}`}</span>;
}

function billions(parameters: number): string {
  return parameters >= 1e9 ? `${+(parameters / 1e9).toFixed(1)}B` : `${Math.round(parameters / 1e6)}M`;
}
