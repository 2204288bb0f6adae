import { useEffect, useRef, useState } from "preact/hooks";
import { get, may, send } from "../lib/api";
import { labels, parse, ratio, type Scrape, total } from "../lib/metrics";
import { Chart } from "../parts/chart";
import { Card, count, Problem, Table } from "../parts/controls";
import { Stat } from "./account";

const EVERY_MS = 2000;
const KEPT = 150;

interface Sample {
  at: number;
  scrape: Scrape;
}

export function Health() {
  const [samples, setSamples] = useState<Sample[]>([]);
  const [ready, setReady] = useState("");
  const [error, setError] = useState<unknown>();
  const live = useRef(true);
  useEffect(() => {
    live.current = true;
    let timer = 0;
    const look = async () => {
      try {
        setReady(await get<{ status: string }>("/ready").then((reply) => reply.status));
      } catch (failure) {
        if (live.current) setReady((failure as Error).message);
      }
      if (may("operate")) {
        try {
          const scrape = parse(await (await send("/metrics")).text());
          if (live.current) setSamples((before) => [...before.slice(-KEPT), { at: Date.now() / 1000, scrape }]);
          setError(undefined);
        } catch (failure) {
          if (live.current) setError(failure);
        }
      }
      if (live.current) timer = window.setTimeout(look, EVERY_MS);
    };
    void look();
    return () => {
      live.current = false;
      clearTimeout(timer);
    };
  }, []);
  const now = samples.at(-1)?.scrape;
  return (
    <div class="view">
      <h1>Health</h1>
      <Problem error={error} />
      <dl class="numbers">
        <Stat name="Service" value={ready || "…"} />
        {now && <Stat name="Running" value={count(total(now, "vermilion_running_requests"))} />}
        {now && <Stat name="Waiting" value={count(total(now, "vermilion_waiting_requests"))} />}
        {now && <Stat name="Cache pages" value={`${total(now, "vermilion_kv_pages_used")} of ${total(now, "vermilion_kv_pages_total")}`} />}
        {now && <Stat name="Tokens out" value={count(total(now, "vermilion_completion_tokens_total"))} />}
        {now && <Stat name="Tokens per pass" value={(total(now, "vermilion_completion_tokens_total") / Math.max(1, total(now, "vermilion_passes_total"))).toFixed(2)} />}
      </dl>
      {!may("operate") && (
        <p class="notice">
          The plots read the service's metrics, which need a key with the scope operate. Whoever has the command line makes one:{" "}
          <code>vermilion accounts keys create ORG --scopes generate,jobs,manage,operate</code>
        </p>
      )}
      {now && samples.length > 1 ? <Plots samples={samples} /> : may("operate") && <p class="empty">Collecting …</p>}
      {now && <Routes scrape={now} />}
    </div>
  );
}

function Plots({ samples }: { samples: Sample[] }) {
  const x = samples.slice(1).map((sample) => sample.at);
  const over = (value: (before: Sample, now: Sample) => number | null) => samples.slice(1).map((now, index) => value(samples[index]!, now));
  const gauge = (name: string) => over((_, now) => total(now.scrape, name));
  const rate = (name: string) => over((before, now) => (total(now.scrape, name) - total(before.scrape, name)) / (now.at - before.at));
  const last = samples.at(-1)!.scrape;
  const sources = labels(last, "vermilion_drafted_tokens_total", "source").filter((source) => total(last, "vermilion_drafted_tokens_total", `"${source}"`));
  const share = (above: string, below: string, having = "", havingBelow = having, scale = 1) =>
    over((before, now) => {
      const value = ratio(before.scrape, now.scrape, above, below, having, havingBelow);
      return value === null ? null : value * scale;
    });
  const parts = labels(last, "vermilion_pass_seconds_total", "part");
  return (
    <div class="cards">
      <Card>
        <Chart title="Queue" kind="time" x={x} series={[{ name: "running", values: gauge("vermilion_running_requests") }, { name: "waiting", values: gauge("vermilion_waiting_requests") }]} />
      </Card>
      <Card>
        <Chart title="Tokens and passes a second" kind="time" x={x} series={[{ name: "tokens", values: rate("vermilion_completion_tokens_total") }, { name: "passes", values: rate("vermilion_engine_passes_total") }]} />
      </Card>
      <Card>
        <Chart
          title="Drafts accepted, percent"
          kind="time"
          unit=" %"
          x={x}
          series={(sources.length ? sources : ["denoiser"]).map((source) => ({
            name: source,
            values: share("vermilion_accepted_tokens_total", "vermilion_drafted_tokens_total", `"${source}"`, `"${source}"`, 100),
          }))}
        />
      </Card>
      <Card>
        <Chart
          title="Cost of a pass, milliseconds"
          kind="time"
          unit=" ms"
          x={x}
          series={(parts.length ? parts : ["forward"]).map((part) => ({
            name: part,
            values: share("vermilion_pass_seconds_total", "vermilion_engine_passes_total", `"${part}"`, "", 1000),
          }))}
        />
      </Card>
      <Card>
        <Chart title="Rows in a pass" kind="time" x={x} series={[{ name: "rows", values: share("vermilion_pass_rows_total", "vermilion_engine_passes_total") }]} />
      </Card>
      <Card>
        <Chart title="Cache pages" kind="time" x={x} series={[{ name: "used", values: gauge("vermilion_kv_pages_used") }, { name: "shareable", values: gauge("vermilion_kv_pages_cached") }]} />
      </Card>
    </div>
  );
}

function Routes({ scrape }: { scrape: Scrape }) {
  const rows = labels(scrape, "vermilion_requests_total", "route").map((route) => {
    const having = `route="${route}"`;
    const requests = total(scrape, "vermilion_requests_total", having);
    const failed = labels(scrape, "vermilion_requests_total", "status")
      .filter((status) => +status >= 400)
      .reduce((sum, status) => sum + (scrape.get(`vermilion_requests_total{${having},status="${status}"}`) ?? 0), 0);
    const seconds = total(scrape, "vermilion_request_duration_seconds_sum", having) / Math.max(1, total(scrape, "vermilion_request_duration_seconds_count", having));
    return { route, requests, failed, seconds };
  });
  return (
    <Card title="Requests since the start">
      <Table
        caption="Requests by route"
        empty="None yet."
        rows={rows.sort((a, b) => b.requests - a.requests)}
        columns={[
          { name: "Route", cell: (row) => row.route },
          { name: "Requests", number: true, cell: (row) => count(row.requests) },
          { name: "Refused or failed", number: true, cell: (row) => count(row.failed) },
          { name: "Mean", number: true, cell: (row) => `${(row.seconds * 1000).toFixed(0)} ms` },
        ]}
      />
    </Card>
  );
}
