// What the gateway and the bus answer with, as far as it is read here. src/wire/http.rs, event.rs and request.rs say more.

export type Status = "pending" | "processing" | "completed" | "failed" | "cancelled";
export type EventKind = "accepted" | "started" | "progress" | "checkpoint" | "completed" | "failed" | "cancelled";
export const EVENT_KINDS: readonly EventKind[] = [
  "accepted",
  "started",
  "progress",
  "checkpoint",
  "completed",
  "failed",
  "cancelled",
];

/** The fields of a request that the console sets. Numbers that somebody mistyped stay texts: the gateway says what is wrong. */
export interface Request {
  model?: string;
  prompt: string;
  negative_prompt?: string;
  width?: number | string;
  height?: number | string;
  num_inference_steps?: number | string;
  guidance_scale?: number | string;
  seed?: number | string;
  num_images?: number | string;
  scheduler?: string;
  priority?: string;
}

export interface Violation {
  field: string;
  value: string;
  allowed: string;
}

export interface ErrorDocument {
  code: string;
  message: string;
  violations?: Violation[];
}

export interface ProblemDocument {
  code: string;
  status: number;
  title: string;
  detail?: string;
  violations?: Violation[];
}

export interface StoredImage {
  index: number;
  content_type: string;
  size_bytes: number;
  sha256: string;
  seed: number;
}

export interface Timings {
  queued_ms: number;
  loading_ms: number;
  encoding_ms: number;
  denoising_ms: number;
  decoding_ms: number;
  storing_ms: number;
}

export interface Progress {
  step: number;
  steps: number;
  remaining_ms: number;
  preview?: string;
}

export interface JobDocument {
  id: string;
  status: Status;
  model: string;
  created: string;
  updated: string;
  queue_position?: number;
  estimated_time?: number;
  progress?: Progress;
  images?: StoredImage[];
  timings?: Timings;
  warnings?: string[];
  error?: ErrorDocument;
  metadata?: Record<string, unknown>;
}

export interface CloudEvent {
  type: string;
  time: string;
  data: Record<string, unknown>;
}

export interface Model {
  name: string;
  family: string;
  defaults: {
    width: number;
    height: number;
    num_inference_steps: number;
    guidance_scale: number;
    scheduler: string;
  };
  /** The smallest and the largest side, and what both are multiples of, in pixels. */
  sides: [number, number, number];
  pending: number;
}

export interface Worker {
  worker: string;
  state: "ready" | "draining";
  pools: string[];
  jobs_held: number;
  images_stepping: number;
  images_in_batch_max: number;
  /** What it does while it steps. */
  image_steps_per_second?: number;
  since: string;
}

export interface FleetModel {
  name: string;
  pending: number;
  workers: Worker[];
}

export interface Config {
  nats: { url: string; tenant: string } | null;
}

export function isTerminal(status: Status): boolean {
  return status === "completed" || status === "failed" || status === "cancelled";
}

/** The kind of an event, by its `type`. */
export function kindOf(event: CloudEvent): EventKind | undefined {
  return EVENT_KINDS.find((kind) => event.type === `darkroom.job.${kind}`);
}

/** The subjects of a job's events and of its progress, as src/wire/subject.rs has them. */
export function subjectsOf(tenant: string, job: string): [string, string] {
  return [`darkroom.ev.${tenant}.${job}.>`, `darkroom.prog.${tenant}.${job}`];
}
