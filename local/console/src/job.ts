// What is known of a job: a value that documents and events change. No page, no network and no clock here.

import {
  isTerminal,
  kindOf,
  type CloudEvent,
  type ErrorDocument,
  type JobDocument,
  type Progress,
  type Request,
  type Status,
  type StoredImage,
  type Timings,
} from "./wire.ts";

export interface Job {
  id: string;
  status: Status;
  model: string;
  /** RFC 3339. */
  created: string;
  /** What was asked for, where it is known: only this console's own jobs say it. */
  request?: Request;
  /** The seed of image 0. */
  seed?: number;
  queuePosition?: number;
  /** Seconds. */
  estimatedTime?: number;
  progress?: Progress;
  /** The last preview, as an address. */
  preview?: string;
  images: StoredImage[];
  timings?: Timings;
  warnings: string[];
  error?: ErrorDocument;
  worker?: string;
}

/** Metadata is echoed with events and kept with the record, in at most 4096 bytes; some of it is for the gateway's own words. */
const METADATA_BYTES_MAX = 3800;
const METADATA_FIELD = "console";

/** What is sent along with a request so that other browsers can show it; nothing when it is too long. */
export function metadataOf(request: Request): Record<string, unknown> | undefined {
  const metadata = { [METADATA_FIELD]: request };
  return new TextEncoder().encode(JSON.stringify(metadata)).length <= METADATA_BYTES_MAX ? metadata : undefined;
}

function requestIn(metadata: unknown): Request | undefined {
  const request = (metadata as Record<string, unknown> | undefined)?.[METADATA_FIELD] as Request | undefined;
  return typeof request?.prompt === "string" ? request : undefined;
}

/** The job as a document shows it, with what was known before. An ended job does not change any more. */
export function afterDocument(before: Job | undefined, document: JobDocument, known?: Request): Job {
  if (before !== undefined && isTerminal(before.status) && !isTerminal(document.status)) return before;
  const { id, status, model, created } = document;
  const job: Job = { ...before, id, status, model, created, images: document.images ?? [], warnings: document.warnings ?? [] };
  const request = before?.request ?? known ?? requestIn(document.metadata);
  if (request !== undefined) job.request = request;
  const seed = document.images?.find((image) => image.index === 0)?.seed ?? before?.seed ?? seedOf(request);
  if (seed !== undefined) job.seed = seed;
  if (document.timings !== undefined) job.timings = document.timings;
  if (document.error !== undefined) job.error = document.error;
  set(job, "queuePosition", status === "pending" ? document.queue_position : undefined);
  set(job, "estimatedTime", isTerminal(status) ? undefined : document.estimated_time);
  return status === "processing" && document.progress !== undefined ? withProgress(job, document.progress) : job;
}

/** The job after an event; the same job when the event says nothing new. */
export function afterEvent(before: Job, event: CloudEvent): Job {
  const kind = kindOf(event);
  if (kind === undefined || isTerminal(before.status)) return before;
  const data = event.data;
  const job: Job = { ...before };
  const request = before.request ?? requestIn(data["metadata"]);
  if (request !== undefined) job.request = request;
  switch (kind) {
    case "accepted":
      if (typeof data["seed"] === "number") job.seed = data["seed"];
      return job;
    case "started":
      if (typeof data["worker"] === "string") job.worker = data["worker"];
      return running(job);
    case "progress":
      return withProgress(running(job), data as unknown as Progress);
    case "checkpoint":
      return running(job);
    case "completed":
    case "cancelled":
      job.images = (data["images"] as StoredImage[] | undefined) ?? [];
      if (job.images[0]?.index === 0) job.seed = job.images[0].seed;
      if (data["timings"] !== undefined) job.timings = data["timings"] as Timings;
      job.warnings = (data["warnings"] as string[] | undefined) ?? [];
      return ended(job, kind);
    case "failed":
      if (data["error"] !== undefined) job.error = data["error"] as ErrorDocument;
      return ended(job, kind);
  }
}

function running(job: Job): Job {
  job.status = "processing";
  delete job.queuePosition;
  delete job.estimatedTime;
  return job;
}

function ended(job: Job, status: Status): Job {
  job.status = status;
  delete job.queuePosition;
  delete job.estimatedTime;
  return job;
}

function withProgress(job: Job, progress: Progress): Job {
  job.progress = progress;
  if (progress.preview !== undefined) job.preview = `data:image/jpeg;base64,${progress.preview}`;
  return job;
}

function seedOf(request: Request | undefined): number | undefined {
  return typeof request?.seed === "number" ? request.seed : undefined;
}

function set<K extends "queuePosition" | "estimatedTime">(job: Job, field: K, value: Job[K]): void {
  if (value === undefined) delete job[field];
  else job[field] = value;
}

/** How much of it is done, 0 to 1; nothing while no step is. */
export function fraction(job: Job): number | undefined {
  const { progress } = job;
  return progress === undefined || progress.steps === 0 ? undefined : progress.step / progress.steps;
}

/** How many images it is to have. */
export function imagesOf(job: Job): number {
  const asked = job.request?.num_images;
  return job.images.length > 0 ? job.images.length : typeof asked === "number" ? asked : 1;
}

/** The request that makes the same images again; nothing when it is not known. */
export function again(job: Job): Request | undefined {
  if (job.request === undefined) return undefined;
  const request: Request = { model: job.model, ...job.request };
  if (job.seed !== undefined) request.seed = job.seed;
  return request;
}

/** Jobs newest first; ids decide between those of one moment. */
export function newestFirst(one: Job, other: Job): number {
  return other.created.localeCompare(one.created) || other.id.localeCompare(one.id);
}
