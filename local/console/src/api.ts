// Asking the gateway over HTTP. Who asks without a key, and is told that one is needed, is asked for it once.

import type { Config, FleetModel, JobDocument, Model, ProblemDocument, Request, Violation } from "./wire.ts";
import { metadataOf } from "./job.ts";

const KEY = "darkroom.key";
/** A submission that got no answer is sent again so often: its key makes it the same job. */
const TRIES_MAX = 4;

/** The gateway said no. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly violations: Violation[],
    /** Seconds until it is worth trying again. */
    readonly retryAfter: number | undefined,
  ) {
    super(message);
  }
}

/** The gateway said nothing. */
export class Unreachable extends Error {
  constructor() {
    super("The gateway does not answer");
  }
}

/** Asks for a key, with what the gateway said; `undefined` when none is given. */
export type KeyAsker = (reason: string) => Promise<string | undefined>;

let askForKey: KeyAsker = async () => undefined;
let asking: Promise<string | undefined> | undefined;

export function onKeyWanted(asker: KeyAsker): void {
  askForKey = asker;
}

export function key(): string | undefined {
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? undefined;
}

/** Keeps a key: while this tab is open, or until it is forgotten. */
export function keepKey(value: string | undefined, keep: "tab" | "device"): void {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  if (value !== undefined) (keep === "tab" ? sessionStorage : localStorage).setItem(KEY, value);
}

/** An address for what cannot set headers: images and event streams. */
export function withKey(path: string): string {
  const shown = key();
  return shown === undefined ? path : `${path}?api_key=${encodeURIComponent(shown)}`;
}

async function ask<T>(path: string, init: RequestInit = {}): Promise<T> {
  for (;;) {
    const shown = key();
    const headers = new Headers(init.headers);
    if (shown !== undefined) headers.set("Authorization", `Bearer ${shown}`);
    const answer = await fetch(path, { ...init, headers }).catch(() => {
      throw new Unreachable();
    });
    if (answer.ok) return (await answer.json()) as T;
    const problem = await problemOf(answer);
    if (problem.status !== 401) throw problem;
    if (key() !== shown) continue;
    asking ??= askForKey(problem.message).finally(() => (asking = undefined));
    if ((await asking) === undefined) throw problem;
  }
}

async function problemOf(answer: Response): Promise<Problem> {
  const document = (await answer.json().catch(() => undefined)) as ProblemDocument | undefined;
  const after = Number(answer.headers.get("Retry-After"));
  const { code = "unknown", detail, title, violations = [] } = document ?? {};
  const message = detail || title || `The gateway answered ${answer.status}`;
  return new Problem(answer.status, code, message, violations, Number.isFinite(after) && after > 0 ? after : undefined);
}

export async function config(): Promise<Config> {
  return await ask<Config>("/console/config.json").catch(() => ({ nats: null }));
}

export async function models(): Promise<Model[]> {
  return (await ask<{ models: Model[] }>("/v1/models")).models;
}

/** Says that somebody will soon ask for a model. Nothing depends on it. */
export async function wake(model: string): Promise<void> {
  const shown = key();
  const headers: Record<string, string> = shown === undefined ? {} : { Authorization: `Bearer ${shown}` };
  await fetch(`/v1/models/${encodeURIComponent(model)}/wake`, { method: "POST", headers }).catch(() => undefined);
}

/** The names of samplers, as the interface's own description has them. */
export async function schedulers(): Promise<string[]> {
  interface Description {
    components: { schemas: { SubmissionDocument?: { properties: { scheduler?: { enum?: string[] } } } } };
  }
  const { components } = await ask<Description>("/openapi.json");
  return components.schemas.SubmissionDocument?.properties.scheduler?.enum ?? [];
}

export async function job(id: string): Promise<JobDocument> {
  return await ask<JobDocument>(`/v1/jobs/${encodeURIComponent(id)}`);
}

export async function jobs(limit: number): Promise<JobDocument[]> {
  return (await ask<{ jobs: JobDocument[] }>(`/v1/jobs?limit=${limit}`)).jobs;
}

export async function fleet(): Promise<FleetModel[]> {
  return (await ask<{ models: FleetModel[] }>("/v1/fleet")).models;
}

/** Submits a request as a job of that id once, however often it has to be sent. */
export async function submit(id: string, request: Request, previews: number): Promise<JobDocument> {
  const init: RequestInit = {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": id },
    body: JSON.stringify({ ...request, previews, metadata: metadataOf(request) }),
  };
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask<JobDocument>("/v1/jobs", init);
    } catch (error) {
      const again = error instanceof Unreachable || (error instanceof Problem && error.code === "unavailable");
      if (!again || tries === TRIES_MAX) throw error;
      await new Promise((resolve) => setTimeout(resolve, 400 * 2 ** tries));
    }
  }
}

export async function cancel(id: string, keep: "nothing" | "partial"): Promise<JobDocument> {
  const query = keep === "partial" ? "?keep_partial=true" : "";
  return await ask<JobDocument>(`/v1/jobs/${encodeURIComponent(id)}${query}`, { method: "DELETE" });
}

export function imageAddress(id: string, index: number): string {
  return withKey(`/v1/jobs/${encodeURIComponent(id)}/images/${index}`);
}

/** An id that nobody has had. Pages that did not come over TLS have no `randomUUID`. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
