import { useState } from "preact/hooks";
import { get, may, post } from "../lib/api";
import { models } from "../lib/models";
import { Chart } from "../parts/chart";
import { Card, Confirm, count, Problem, Select, Table, TextArea, TextInput, useLoaded, when } from "../parts/controls";
import { NeedsScope } from "./account";
import { Status, type StoredFile, Upload } from "./files";

interface Job {
  id: string;
  created_at: number;
  finished_at: number | null;
  estimated_finish: number | null;
  model: string;
  fine_tuned_model: string | null;
  status: string;
  trained_tokens: number | null;
  training_file: string;
  error: { message: string } | null;
  hyperparameters: { n_epochs: number };
}

interface JobEvent {
  id: string;
  created_at: number;
  level: string;
  message: string;
  data?: { step?: number; train_loss?: number; valid_loss?: number };
}

const RUNNING = new Set(["validating_files", "queued", "running", "paused"]);

export function Tuning() {
  const jobs = useLoaded(() => get<{ data: Job[] }>("/v1/fine_tuning/jobs"), [], 3000);
  const files = useLoaded(() => get<{ data: StoredFile[] }>("/v1/files?purpose=fine-tune"), []);
  const [chosen, setChosen] = useState("");
  if (!may("jobs")) return <NeedsScope scope="jobs" what="Fine-tuning" />;
  const rows = jobs.data?.data ?? [];
  const open = rows.find((job) => job.id === chosen) ?? rows[0];
  return (
    <div class="view">
      <h1>Fine-tuning</h1>
      <p class="lead">
        A line of the file is {'{"messages": [...]}'}, the last of them the assistant's. When a job has finished, its model is served at once.
      </p>
      <Problem error={jobs.error ?? files.error} />
      <Upload purposes={["fine-tune"]} done={() => files.reload()} />
      <NewJob
        files={files.data?.data ?? []}
        done={(job) => {
          setChosen(job.id);
          jobs.reload();
        }}
      />
      <Card title="Jobs">
        <Table
          caption="Jobs"
          empty="No jobs yet."
          rows={rows}
          columns={[
            {
              name: "Job",
              cell: (job) => (
                <button type="button" class="small" aria-pressed={job.id === open?.id} onClick={() => setChosen(job.id)}>
                  {job.id}
                </button>
              ),
            },
            { name: "Status", cell: (job) => <Status text={job.status} /> },
            { name: "Trained tokens", number: true, cell: (job) => (job.trained_tokens ? count(job.trained_tokens) : "–") },
            { name: "Created", cell: (job) => when(job.created_at) },
            { name: "Ends", cell: (job) => when(job.finished_at ?? job.estimated_finish) },
          ]}
        />
      </Card>
      {open && <Details key={open.id} job={open} changed={jobs.reload} />}
    </div>
  );
}

function NewJob({ files, done }: { files: StoredFile[]; done: (job: Job) => void }) {
  const [chosen, setChosen] = useState("");
  const [model, setModel] = useState("");
  const [suffix, setSuffix] = useState("");
  const [epochs, setEpochs] = useState("2");
  const [error, setError] = useState<unknown>();
  const file = chosen || files[0]?.id || "";
  const base = model || (models.value[0]?.id ?? "");
  const make = async () => {
    setError(undefined);
    try {
      const supervised = { hyperparameters: { n_epochs: Math.round(+epochs) } };
      done(await post<Job>("/v1/fine_tuning/jobs", { model: base, training_file: file, ...(suffix ? { suffix } : {}), method: { type: "supervised", supervised } }));
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <Card title="New job">
      <div class="row">
        <Select label="Start from" value={base} set={setModel} options={models.value.map((one) => one.id)} />
        <Select label="Training file" value={file} set={setChosen} options={files.length ? files.map((one) => [one.id, one.filename] as const) : [["", "upload one first"]]} />
        <TextInput label="Name (optional)" value={suffix} set={setSuffix} placeholder="support" />
        <TextInput label="Epochs" type="number" min={1} max={50} value={epochs} set={setEpochs} />
        <button type="button" disabled={!file || !base} onClick={() => void make()}>
          Start
        </button>
      </div>
      <Problem error={error} />
    </Card>
  );
}

function Details({ job, changed }: { job: Job; changed: () => void }) {
  const live = RUNNING.has(job.status);
  const events = useLoaded(() => get<{ data: JobEvent[] }>(`/v1/fine_tuning/jobs/${job.id}/events?limit=100`), [job.id, job.status], live ? 2000 : 0);
  const [error, setError] = useState<unknown>();
  const told = [...(events.data?.data ?? [])].sort((a, b) => a.created_at - b.created_at || (a.data?.step ?? 0) - (b.data?.step ?? 0));
  const losses = told.filter((event) => event.data?.step !== undefined && (event.data.train_loss !== undefined || event.data.valid_loss !== undefined));
  const steps = [...new Set(losses.map((event) => event.data!.step!))].sort((a, b) => a - b);
  const of = (name: "train_loss" | "valid_loss") => steps.map((step) => losses.find((event) => event.data!.step === step && event.data![name] !== undefined)?.data![name] ?? null);
  const valid = of("valid_loss");
  const act = async (what: string) => {
    setError(undefined);
    try {
      await post(`/v1/fine_tuning/jobs/${job.id}/${what}`);
      changed();
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <Card
      title={job.id}
      actions={
        <span class="actions">
          <Status text={job.status} />
          {(job.status === "running" || job.status === "queued") && (
            <button type="button" class="small" onClick={() => void act("pause")}>
              Pause
            </button>
          )}
          {job.status === "paused" && (
            <button type="button" class="small" onClick={() => void act("resume")}>
              Resume
            </button>
          )}
          {live && <Confirm label="Cancel" question="End the job" run={() => void act("cancel")} />}
        </span>
      }
    >
      <Problem error={error ?? job.error?.message ?? events.error} />
      {steps.length > 0 && (
        <Chart title="Loss by step" x={steps} series={[{ name: "training", values: of("train_loss") }, ...(valid.some((value) => value !== null) ? [{ name: "validation", values: valid }] : [])]} />
      )}
      {job.fine_tuned_model && <BeforeAndAfter job={job} />}
      <details>
        <summary>What happened</summary>
        <Table
          caption="Events"
          empty="Nothing yet."
          rows={told.toReversed()}
          columns={[
            { name: "When", cell: (event) => when(event.created_at) },
            { name: "What", cell: (event) => <span class="wrap">{event.message}</span> },
          ]}
        />
      </details>
    </Card>
  );
}

function BeforeAndAfter({ job }: { job: Job }) {
  const [prompt, setPrompt] = useState("Tell me about yourself.");
  const [texts, setTexts] = useState<[string, string]>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const ask = async (model: string) => {
    const body = { model, messages: [{ role: "user", content: prompt }], max_tokens: 96 };
    return (await post<any>("/v1/chat/completions", body)).choices[0].message.content as string;
  };
  const run = async () => {
    setBusy(true);
    setError(undefined);
    try {
      setTexts(await Promise.all([ask(job.model), ask(job.fine_tuned_model!)]));
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  return (
    <>
      <TextArea label="A sample before and after" value={prompt} set={setPrompt} rows={2} send={() => void run()} />
      <div class="actions">
        <button type="button" class="primary" disabled={busy || !prompt} onClick={() => void run()}>
          {busy ? "Asking both …" : "Ask both"}
        </button>
        <span class="hint">
          served as <code>{job.fine_tuned_model}</code>
        </span>
      </div>
      <Problem error={error} />
      {texts && (
        <div class="pair">
          <section class="card" aria-label="Before">
            <h3>Before</h3>
            <p class="sample">{texts[0]}</p>
          </section>
          <section class="card" aria-label="After">
            <h3>After</h3>
            <p class="sample">{texts[1]}</p>
          </section>
        </div>
      )}
    </>
  );
}
