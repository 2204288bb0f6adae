/** How to decode and sample: made from the service's own table, so that a new decoder needs no change here. */

import { signal } from "@preact/signals";
import { useId } from "preact/hooks";
import { decoders, loadDecoders, models, type Range } from "../lib/models";
import { Select } from "./controls";

export interface Settings {
  model: string;
  preset: string;
  decoder: string;
  knobs: Record<string, number>;
  sampling: Record<string, number>;
  maxTokens: number;
}

const START: Settings = { model: "", preset: "", decoder: "", knobs: {}, sampling: {}, maxTokens: 128 };
const SHOWN_SAMPLING = ["temperature", "top_p", "seed", "repetition_penalty", "presence_penalty"];
const SLIDER_ENDS: Record<string, number> = { seed: 100, threshold: 1, repetition_penalty: 2, draft_nodes: 64 };

export const settings = signal<Settings>(START);

function change(part: Partial<Settings>): void {
  settings.value = { ...settings.value, ...part };
}

/** Until one is chosen a preset that shows diffusion rather than the service's own default. */
function presetOf(given: Settings): string {
  return given.preset || ["balanced", decoders.value!.default_preset].find((name) => name in decoders.value!.presets)!;
}

/** The fields of a request that say what has been set. */
export function requestFields(given: Settings = settings.value): Record<string, unknown> {
  const decoding = { ...(given.decoder ? { decoder: given.decoder } : {}), ...given.knobs };
  return {
    ...(given.model ? { model: given.model } : models.value[0] ? { model: models.value[0].id } : {}),
    ...(decoders.value ? { preset: presetOf(given) } : {}),
    ...(Object.keys(decoding).length ? { decoding } : {}),
    ...given.sampling,
    max_tokens: given.maxTokens,
  };
}

export function SettingsPanel({ withDecoding = true }: { withDecoding?: boolean }) {
  const table = decoders.value;
  const now = settings.value;
  if (!table) return null;
  const preset = presetOf(now);
  const base = table.presets[preset] ?? {};
  const decoder = now.decoder || String(base.decoder ?? "");
  const row = table.data.find((one) => one.id === decoder);
  return (
    <details class="settings" open={matchMedia("(min-width: 900px)").matches}>
      <summary>Settings</summary>
      <div class="settings-body">
        {models.value.length > 1 && (
          <Select
            label="Model"
            value={now.model || models.value[0]!.id}
            set={(model) => {
              change({ model, preset: "", decoder: "", knobs: {} });
              void loadDecoders(model);
            }}
            options={models.value.map((model) => model.id)}
          />
        )}
        {withDecoding && (
          <>
            <Select
              label="Preset"
              value={preset}
              set={(name) => change({ preset: name, decoder: "", knobs: {} })}
              options={Object.keys(table.presets).map((name) => [name, name === table.default_preset ? `${name} (default)` : name] as const)}
            />
            <details class="inner">
              <summary>Decoder: {decoder}</summary>
              <div class="settings-body">
                <Select
                  label="Decoder"
                  value={decoder}
                  hint={row?.meaning}
                  set={(name) => change({ decoder: name === base.decoder ? "" : name, knobs: {} })}
                  options={table.data.map((one) => one.id)}
                />
                {row?.settings.map((name) => (
                  <Knob
                    key={name}
                    name={name}
                    range={name === "threshold" ? { ...table.settings[name]!, maximum: row.max_threshold } : table.settings[name]!}
                    value={now.knobs[name] ?? Number(base[name] ?? table.settings[name]!.default)}
                    set={(value) => change({ knobs: { ...now.knobs, [name]: value } })}
                  />
                ))}
              </div>
            </details>
          </>
        )}
        <Knob
          name="max_tokens"
          range={{ minimum: 1, maximum: 1024, integer: true, default: 128, meaning: "longest answer" }}
          value={now.maxTokens}
          set={(maxTokens) => change({ maxTokens })}
        />
        {SHOWN_SAMPLING.filter((name) => table.sampling[name]).map((name) => (
          <Knob
            key={name}
            name={name}
            range={table.sampling[name]!}
            value={now.sampling[name] ?? table.sampling[name]!.default}
            set={(value) => change({ sampling: { ...now.sampling, [name]: value } })}
          />
        ))}
        <button
          type="button"
          class="small"
          onClick={() => {
            settings.value = START;
            void loadDecoders("");
          }}
        >
          Reset
        </button>
      </div>
    </details>
  );
}

function Knob({ name, range, value, set }: { name: string; range: Range; value: number; set: (value: number) => void }) {
  const id = useId();
  const end = Math.min(range.maximum, SLIDER_ENDS[name] ?? range.maximum);
  const step = range.integer ? 1 : end - range.minimum > 10 ? 0.1 : 0.01;
  const take = (text: string) => {
    const number = Number(text);
    if (text !== "" && Number.isFinite(number)) set(Math.min(range.maximum, Math.max(range.minimum, range.integer ? Math.round(number) : number)));
  };
  return (
    <div class="knob">
      <label for={id}>{name.replaceAll("_", " ")}</label>
      <input id={id} type="number" min={range.minimum} max={range.maximum} step={step} value={value} aria-describedby={`${id}-hint`} onChange={(event) => take(event.currentTarget.value)} />
      <input type="range" min={range.minimum} max={end} step={step} value={value} aria-label={`${name.replaceAll("_", " ")}, slider`} onInput={(event) => take(event.currentTarget.value)} />
      <p class="hint" id={`${id}-hint`}>
        {range.meaning}
      </p>
    </div>
  );
}
