// The console: which jobs there are, which one is looked at, and who is asked when.

import * as api from "./api.ts";
import * as fleet from "./fleet.ts";
import * as form from "./form.ts";
import { again, afterDocument, afterEvent, newestFirst, type Job } from "./job.ts";
import { Live, type Transport } from "./live.ts";
import { byId, copy, say, sayOrHide } from "./page.ts";
import * as sheet from "./sheet.ts";
import * as viewer from "./viewer.ts";
import { isTerminal, type CloudEvent, type JobDocument, type Request } from "./wire.ts";
import { announcement, capital } from "./words.ts";

const REQUESTS = "darkroom.requests";
const REQUESTS_KEPT = 300;
const LISTED = 100;
const LOOK_EVERY_MS = 2000;
/** Events are the quick way, the record is the sure one. */
const SURE_EVERY_MS = 6000;
const LIST_EVERY_MS = 8000;
/** Jobs that are looked at in one turn. */
const LOOKED_AT_MAX = 8;
/** So many previews make a picture form. */
const PREVIEWS = 12;

const TRANSPORT_WORDS: Record<Transport, string> = {
  connecting: "Connecting …",
  nats: "Live over NATS WebSocket",
  sse: "Live by server-sent events",
};

const jobs = new Map<string, Job>();
/** When a job was last heard of, and how often its events came. */
const heard = new Map<string, { at: number; events: number }>();
/** Events of jobs whose submission is not answered yet. */
const early = new Map<string, CloudEvent[]>();
const missing = new Map<string, string>();
let selected: { job: string; image: number } | undefined;
let listed = false;
let rendering = false;

const live = new Live({
  event(id, event) {
    hear(id, true);
    const before = jobs.get(id);
    if (before === undefined) early.set(id, [...(early.get(id) ?? []), event]);
    else put(afterEvent(before, event));
  },
  caughtUp(id) {
    if (!early.has(id)) void look(id);
  },
  transport(transport) {
    const element = byId("transport");
    element.dataset["transport"] = transport;
    say(element, TRANSPORT_WORDS[transport]);
  },
});

// ---- What is known

function hear(id: string, event: boolean): void {
  const events = (heard.get(id)?.events ?? 0) + (event ? 1 : 0);
  heard.set(id, { at: Date.now(), events });
}

function put(job: Job): void {
  const before = jobs.get(job.id);
  jobs.set(job.id, job);
  if (before?.status !== job.status && (before !== undefined || !isTerminal(job.status)) && listed) say(byId("said"), announcement(job));
  render();
}

function learn(document: JobDocument): void {
  put(afterDocument(jobs.get(document.id), document, remembered()[document.id]));
}

/** Asks for a job, unless its events are ahead of the answer. */
async function look(id: string): Promise<void> {
  const events = heard.get(id)?.events ?? 0;
  try {
    const document = await api.job(id);
    if ((heard.get(id)?.events ?? 0) !== events && !isTerminal(document.status)) return;
    hear(id, false);
    missing.delete(id);
    learn(document);
    reached();
  } catch (error) {
    if (error instanceof api.Problem && (error.status === 404 || error.status === 410)) {
      missing.set(id, error.status === 410 ? "This job has ended, and its record was removed." : "There is no such job.");
      jobs.delete(id);
      render();
    } else unreached(error);
  }
}

async function list(): Promise<void> {
  try {
    const documents = await api.jobs(LISTED);
    const there = new Set(documents.map(({ id }) => id));
    for (const document of documents) {
      // Lists say less of a job that runs than its events and its own document.
      const known = jobs.get(document.id);
      if (known === undefined || isTerminal(document.status)) learn(document);
    }
    for (const [id, job] of jobs) if (isTerminal(job.status) && !there.has(id) && selected?.job !== id) jobs.delete(id);
    reached();
    if (!listed) first();
    listed = true;
    render();
  } catch (error) {
    unreached(error);
  }
}

/** Who comes without naming a job sees the one that runs, or the newest. */
function first(): void {
  if (location.hash !== "" && location.hash !== "#/") return;
  const ordered = [...jobs.values()].sort(newestFirst);
  const job = ordered.find(({ status }) => !isTerminal(status)) ?? ordered[0];
  if (job === undefined) return;
  selected = { job: job.id, image: 0 };
  history.replaceState(null, "", `#/jobs/${job.id}/0`);
}

function active(): string[] {
  const ids = [...jobs.values()].filter(({ status }) => !isTerminal(status)).sort(newestFirst).map(({ id }) => id);
  const looked = selected?.job;
  return looked !== undefined && ids.includes(looked) ? [looked, ...ids.filter((id) => id !== looked)] : ids;
}

let listedAt = 0;
async function turn(): Promise<void> {
  if (!document.hidden) {
    const now = Date.now();
    const due = active().filter((id) => {
      const quiet = now - (heard.get(id)?.at ?? 0);
      return !live.follows(id) || jobs.get(id)?.status === "pending" || quiet > SURE_EVERY_MS;
    });
    await Promise.all(due.slice(0, LOOKED_AT_MAX).map(look));
    if (now - listedAt > LIST_EVERY_MS) {
      listedAt = now;
      await list();
      await models();
    }
    live.want(active());
  }
  setTimeout(() => void turn(), LOOK_EVERY_MS);
}

async function models(): Promise<void> {
  try {
    form.showModels(await api.models());
  } catch (error) {
    unreached(error);
  }
}

function reached(): void {
  sayOrHide(byId("trouble"), undefined);
}

function unreached(error: unknown): void {
  if (error instanceof api.Problem && error.status === 401) sayOrHide(byId("trouble"), "This gateway wants an API key.");
  else sayOrHide(byId("trouble"), `${capital(error instanceof Error ? error.message : String(error))}. Trying again …`);
}

// ---- What was asked for: the gateway does not say it of jobs that run

function remembered(): Record<string, Request> {
  return JSON.parse(localStorage.getItem(REQUESTS) ?? "{}") as Record<string, Request>;
}

function remember(id: string, request: Request): void {
  const kept = Object.entries(remembered()).slice(1 - REQUESTS_KEPT);
  localStorage.setItem(REQUESTS, JSON.stringify(Object.fromEntries([...kept, [id, request]])));
}

// ---- What is done

async function submit(request: Request): Promise<void> {
  const steps = typeof request.num_inference_steps === "number" ? request.num_inference_steps : 20;
  const id = api.newId();
  early.set(id, []);
  try {
    await live.prepare(id);
    const document = await api.submit(id, request, Math.min(100, Math.max(1, Math.round(steps / PREVIEWS))));
    remember(id, request);
    let job = afterDocument(undefined, document, request);
    put(job);
    for (const event of early.get(id) ?? []) put((job = afterEvent(job, event)));
  } finally {
    early.delete(id);
  }
  live.want(active());
  go({ job: id, image: 0 });
  // On a narrow page the picture is below the form.
  byId("viewer").scrollIntoView({ block: "nearest" });
}

/** What a form's submission and a button's have in common is that somebody wants to know why it failed. */
async function submitFromForm(request: Request): Promise<void> {
  try {
    await submit(request);
  } catch (error) {
    const problem = error instanceof api.Problem ? error : undefined;
    const later = problem?.retryAfter === undefined ? "" : ` Try again in ${problem.retryAfter} s.`;
    form.showErrors(problem?.violations ?? [], `${capital((error as Error).message)}.${later}`);
  }
}

async function tell(doing: Promise<unknown>): Promise<void> {
  try {
    await doing;
  } catch (error) {
    sayOrHide(byId("trouble"), `${capital((error as Error).message)}.`);
  }
}

form.setUp({ submit: submitFromForm, schedulers: api.schedulers, wake: api.wake });
viewer.setUp({
  cancel: (job, keep) =>
    tell(
      api.cancel(job.id, keep).then(learn, (error: unknown) => {
        // It was quicker.
        if (error instanceof api.Problem && error.code === "job_ended") return look(job.id);
        throw error;
      }),
    ),
  async again(job) {
    const request = again(job);
    if (request !== undefined) await tell(submit(request));
  },
  async vary(job) {
    const request = again(job);
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    if (request !== undefined && seed !== undefined) await tell(submit({ ...request, seed }));
  },
  use(job) {
    const request = again(job);
    if (request === undefined) return;
    form.fill(request);
    byId("prompt").focus();
  },
  async copy(job) {
    const request = again(job);
    if (request === undefined) return;
    await tell(copy(JSON.stringify(request, null, 2)));
    say(byId("said"), "Parameters copied");
  },
});

// ---- What is shown

function go(to: { job: string; image: number }): void {
  const hash = `#/jobs/${to.job}/${to.image}`;
  if (location.hash === hash) render();
  else location.hash = hash;
}

function route(): void {
  const inFleet = location.hash === "#/fleet";
  byId("pictures").hidden = inFleet;
  byId("fleet").hidden = !inFleet;
  for (const [id, here] of [["to-pictures", !inFleet], ["to-fleet", inFleet]] as const) {
    if (here) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  }
  fleet.setOpen(inFleet);
  const [, job, image] = /^#\/jobs\/([A-Za-z0-9_-]+)(?:\/(\d+))?$/.exec(location.hash) ?? [];
  if (job !== undefined) {
    const before = selected?.job;
    selected = { job, image: Number(image ?? 0) };
    live.want(active());
    if (!jobs.has(job) && before !== job) void look(job);
  }
  render();
}

function render(): void {
  if (rendering) return;
  rendering = true;
  queueMicrotask(() => {
    rendering = false;
    const job = selected === undefined ? undefined : jobs.get(selected.job);
    const nothing = selected === undefined ? undefined : (missing.get(selected.job) ?? "Looking …");
    viewer.show(job, selected?.image ?? 0, nothing ?? "Nothing in the tray. Write a prompt, and watch the picture form.");
    sheet.show([...jobs.values()].sort(newestFirst), selected);
    byId("sheet-empty").hidden = !listed || jobs.size > 0;
    document.title = viewer.title(job);
  });
}

// ---- The key

const dialog = byId<HTMLDialogElement>("key-dialog");

function askForKey(reason: string): Promise<string | undefined> {
  byId("key-change").hidden = false;
  say(byId("key-reason"), `${capital(reason)}.`);
  byId<HTMLInputElement>("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const value = byId<HTMLInputElement>("key").value.trim();
        if (dialog.returnValue !== "use" || value === "") return resolve(undefined);
        api.keepKey(value, byId<HTMLInputElement>("key-keep").checked ? "device" : "tab");
        resolve(value);
      },
      { once: true },
    );
  });
}

api.onKeyWanted(askForKey);
byId("key-change").hidden = api.key() === undefined;
byId("key-change").addEventListener("click", async () => {
  // Whose jobs are shown depends on it, so all begins anew.
  if ((await askForKey("whose jobs are made and seen here is decided by the key")) !== undefined) location.reload();
});

byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId(location.hash === "#/fleet" ? "fleet-title" : "viewer-title").focus();
});
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) for (const id of active()) void look(id);
});

async function start(): Promise<void> {
  route();
  await Promise.all([models(), list()]);
  listedAt = Date.now();
  // NATS knows nothing of keys: whoever shows one is another tenant than the one that is told.
  const { nats } = await api.config();
  await live.open(api.key() === undefined ? nats : null);
  live.want(active());
  void turn();
}

void start();
