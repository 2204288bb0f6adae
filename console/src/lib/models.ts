/** What is served, and the table of decoders that every control of the playground is made from. */

import { signal } from "@preact/signals";
import { ApiError, get } from "./api";

export interface Model {
  id: string;
  name: string;
  description: string;
  context_length: number;
  supported_features: string[];
  supported_endpoints: string[];
  default_preset: string;
  decoders: string[];
  presets: Record<string, string>;
  parent?: string;
  /** Of a service that keeps several models: whether it is in memory. */
  state?: string;
  pricing?: { prompt: string; completion: string };
}

export interface Range {
  minimum: number;
  maximum: number;
  integer: boolean;
  default: number;
  meaning: string;
}

export interface Decoder {
  id: string;
  meaning: string;
  needs_base: boolean;
  settings: string[];
  max_threshold: number;
}

export interface DecoderTable {
  data: Decoder[];
  settings: Record<string, Range>;
  sampling: Record<string, Range>;
  presets: Record<string, Record<string, number | string>>;
  default_preset: string;
}

export const models = signal<Model[]>([]);
export const decoders = signal<DecoderTable | undefined>(undefined);
export const readiness = signal<"ready" | "loading" | "gone">("loading");

/** Models without the other names that the same one answers to. */
export function distinct(all: Model[]): Model[] {
  return all.filter((model) => model.id === model.name || model.parent);
}

/** The table of one model; of the service's own where none is named. */
export async function loadDecoders(model: string): Promise<void> {
  decoders.value = await get<DecoderTable>(`/v1/decoders${model ? `?model=${encodeURIComponent(model)}` : ""}`);
}

export async function loadModels(): Promise<void> {
  try {
    const [listed] = await Promise.all([get<{ data: Model[] }>("/v1/models"), loadDecoders("")]);
    models.value = distinct(listed.data);
    readiness.value = "ready";
  } catch (error) {
    readiness.value = error instanceof ApiError && error.status === 0 ? "gone" : "loading";
    if (error instanceof ApiError && (error.status === 0 || error.status === 503)) setTimeout(loadModels, 1500);
  }
}
