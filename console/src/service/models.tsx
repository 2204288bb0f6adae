import { useState } from "preact/hooks";
import { get, may, post, remove } from "../lib/api";
import { distinct, loadModels, type Model } from "../lib/models";
import { Card, Confirm, count, Problem, Table, TextInput, useLoaded } from "../parts/controls";
import { Catalogue } from "./catalogue";

export function Models() {
  const models = useLoaded(() => get<{ data: Model[] }>("/v1/models"), []);
  const [error, setError] = useState<unknown>();
  const rows = distinct(models.data?.data ?? []);
  const changed = () => {
    models.reload();
    void loadModels();
  };
  const drop = async (id: string) => {
    setError(undefined);
    try {
      await remove(`/v1/models/${encodeURIComponent(id)}`);
      changed();
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <div class="view">
      <h1>Models</h1>
      <Problem error={error ?? models.error} />
      <Card title="Served">
        <Table
          caption="Served models"
          empty="The model is still loading."
          rows={rows}
          columns={[
            { name: "Name", cell: (model) => <code>{model.id}</code> },
            { name: "Kind", cell: (model) => (model.parent ? `adapter of ${model.parent}` : "base") },
            { name: "Context", number: true, cell: (model) => count(model.context_length) },
            { name: "Presets", cell: (model) => Object.keys(model.presets).join(", ") },
            { name: "Price in / out", cell: (model) => price(model) },
            {
              name: "",
              cell: (model) =>
                model.parent && (may("manage") || may("operate")) ? (
                  <Confirm label={`Unload ${model.id}`} question="Serve it no longer" run={() => void drop(model.id)} />
                ) : null,
            },
          ]}
        />
      </Card>
      {may("operate") && <LoadAdapter done={changed} />}
      {rows.some((model) => model.state) && <Catalogue changed={changed} />}
    </div>
  );
}

function price(model: Model): string {
  const { prompt, completion } = model.pricing ?? { prompt: "0", completion: "0" };
  if (+prompt === 0 && +completion === 0) return "free";
  const million = (dollars: string) => `$${+(+dollars * 1e6).toFixed(4)}`;
  return `${million(prompt)} / ${million(completion)} per million`;
}

function LoadAdapter({ done }: { done: () => void }) {
  const [name, setName] = useState("");
  const [folder, setFolder] = useState("");
  const [error, setError] = useState<unknown>();
  const load = async () => {
    setError(undefined);
    try {
      await post("/v1/load_lora_adapter", { lora_name: name, lora_path: folder });
      setName("");
      setFolder("");
      done();
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <Card title="Load an adapter">
      <form
        class="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void load();
        }}
      >
        <div class="row">
          <TextInput label="Name" required value={name} set={setName} placeholder="legal" />
          <TextInput label="Folder inside serve.adapter_folder" required value={folder} set={setFolder} placeholder="legal-2" />
          <button type="submit" disabled={!name || !folder}>
            Load
          </button>
        </div>
      </form>
      <p class="hint">A LoRA in PEFT's layout. Answers that are running go on. Fine-tuning jobs load what they make by themselves.</p>
      <Problem error={error} />
    </Card>
  );
}
