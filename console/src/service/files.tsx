import { useState } from "preact/hooks";
import { download, get, may, post, remove, upload } from "../lib/api";
import { Card, Confirm, Problem, Select, size, Table, useLoaded, when } from "../parts/controls";
import { NeedsScope } from "./account";

export interface StoredFile {
  id: string;
  bytes: number;
  created_at: number;
  filename: string;
  purpose: string;
}

interface Batch {
  id: string;
  created_at: number;
  endpoint: string;
  status: string;
  input_file_id: string;
  output_file_id: string | null;
  error_file_id: string | null;
  errors: { data: { line: number | null; message: string }[] } | null;
  request_counts: { total: number; completed: number; failed: number };
}

const ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/fim/completions"];
const OVER = new Set(["completed", "failed", "cancelled", "expired"]);

export function Files() {
  const files = useLoaded(() => get<{ data: StoredFile[] }>("/v1/files"), [], 5000);
  const batches = useLoaded(() => get<{ data: Batch[] }>("/v1/batches"), [], 3000);
  const [error, setError] = useState<unknown>();
  if (!may("jobs")) return <NeedsScope scope="jobs" what="Files and batches" />;
  const act = async (work: () => Promise<unknown>) => {
    setError(undefined);
    try {
      await work();
      files.reload();
      batches.reload();
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <div class="view">
      <h1>Files and batches</h1>
      <Problem error={error ?? files.error ?? batches.error} />
      <Upload purposes={["batch", "fine-tune"]} done={() => files.reload()} />
      <Card title="Files">
        <Table
          caption="Files"
          empty="No files yet."
          rows={files.data?.data ?? []}
          columns={[
            { name: "Name", cell: (file) => file.filename },
            { name: "Id", cell: (file) => <code>{file.id}</code> },
            { name: "Purpose", cell: (file) => file.purpose },
            { name: "Size", number: true, cell: (file) => size(file.bytes) },
            { name: "Created", cell: (file) => when(file.created_at) },
            {
              name: "",
              cell: (file) => (
                <span class="actions">
                  <button type="button" class="small" aria-label={`Save ${file.filename}`} onClick={() => void act(() => download(`/v1/files/${file.id}/content`, file.filename))}>
                    Save
                  </button>
                  <Confirm label="Delete" question={`Delete ${file.filename}`} run={() => void act(() => remove(`/v1/files/${file.id}`))} />
                </span>
              ),
            },
          ]}
        />
      </Card>
      <NewBatch files={(files.data?.data ?? []).filter((file) => file.purpose === "batch")} done={() => batches.reload()} />
      <Card title="Batches">
        <Table
          caption="Batches"
          empty="No batches yet."
          rows={batches.data?.data ?? []}
          columns={[
            { name: "Id", cell: (batch) => <code>{batch.id}</code> },
            { name: "Endpoint", cell: (batch) => batch.endpoint },
            { name: "Status", cell: (batch) => <Status text={batch.status} /> },
            { name: "Answered", cell: (batch) => <Counts batch={batch} /> },
            { name: "Created", cell: (batch) => when(batch.created_at) },
            {
              name: "",
              cell: (batch) => (
                <span class="actions">
                  {batch.output_file_id && (
                    <button type="button" class="small" aria-label={`Save the answers of ${batch.id}`} onClick={() => void act(() => download(`/v1/files/${batch.output_file_id}/content`, `${batch.id}.jsonl`))}>
                      Answers
                    </button>
                  )}
                  {batch.error_file_id && (
                    <button type="button" class="small" aria-label={`Save the errors of ${batch.id}`} onClick={() => void act(() => download(`/v1/files/${batch.error_file_id}/content`, `${batch.id}-errors.jsonl`))}>
                      Errors
                    </button>
                  )}
                  {!OVER.has(batch.status) && <Confirm label="Cancel" question={`Cancel ${batch.id}`} run={() => void act(() => post(`/v1/batches/${batch.id}/cancel`))} />}
                </span>
              ),
            },
          ]}
        />
      </Card>
    </div>
  );
}

export function Status({ text }: { text: string }) {
  const tone = ["succeeded", "completed"].includes(text) ? "good" : ["failed", "cancelled", "expired"].includes(text) ? "bad" : "";
  return <span class={`badge ${tone}`}>{text.replace("_", " ")}</span>;
}

function Counts({ batch }: { batch: Batch }) {
  const { total, completed, failed } = batch.request_counts;
  const reason = batch.errors?.data[0];
  if (reason) return <span class="wrap">{`${reason.line ? `line ${reason.line}: ` : ""}${reason.message}`}</span>;
  return (
    <span>
      <progress max={Math.max(1, total)} value={completed + failed} aria-label={`Answered of ${batch.id}`} />
      {completed} of {total}
      {failed ? `, ${failed} refused` : ""}
    </span>
  );
}

export function Upload({ purposes, done }: { purposes: string[]; done: (file: StoredFile) => void }) {
  const [purpose, setPurpose] = useState(purposes[0]!);
  const [file, setFile] = useState<File>();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const send = async () => {
    setBusy(true);
    setError(undefined);
    try {
      done(await upload<StoredFile>("/v1/files", { purpose, file: file! }));
      setFile(undefined);
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Card title="Upload a file">
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <div class="row">
          <div class="field">
            <label for="upload">JSON lines</label>
            <input id="upload" type="file" accept=".jsonl,application/jsonl,text/plain" onChange={(event) => setFile(event.currentTarget.files?.[0])} />
          </div>
          {purposes.length > 1 && <Select label="Purpose" value={purpose} set={setPurpose} options={purposes} />}
          <button type="submit" disabled={!file || busy}>
            {busy ? "Sending …" : "Upload"}
          </button>
        </div>
      </form>
      <Problem error={error} />
    </Card>
  );
}

function NewBatch({ files, done }: { files: StoredFile[]; done: () => void }) {
  const [chosen, setChosen] = useState("");
  const [endpoint, setEndpoint] = useState(ENDPOINTS[0]!);
  const [error, setError] = useState<unknown>();
  const input = chosen || files[0]?.id || "";
  const make = async () => {
    setError(undefined);
    try {
      await post("/v1/batches", { input_file_id: input, endpoint, completion_window: "24h" });
      done();
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <Card title="New batch">
      <p class="hint">A batch is answered while the service is otherwise idle.</p>
      <div class="row">
        <Select label="File" value={input} set={setChosen} options={files.length ? files.map((file) => [file.id, `${file.filename} (${file.id})`] as const) : [["", "upload one first"]]} />
        <Select label="Endpoint" value={endpoint} set={setEndpoint} options={ENDPOINTS} />
        <button type="button" disabled={!input} onClick={() => void make()}>
          Start the batch
        </button>
      </div>
      <Problem error={error} />
    </Card>
  );
}
