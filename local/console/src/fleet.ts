// The fleet: its workers and their batches, its queue and pace, while somebody looks.

import { fleet, Problem } from "./api.ts";
import { byId, make, sayOrHide } from "./page.ts";
import { ceiling, plot, type Sample } from "./plot.ts";
import type { FleetModel, Worker } from "./wire.ts";
import { capital, count, duration } from "./words.ts";

const LOOK_EVERY_MS = 2000;
const SPAN_MS = 5 * 60_000;

interface History {
  pending: Sample[];
  stepping: Sample[];
  pace: Sample[];
}
const histories = new Map<string, History>();
let timer: ReturnType<typeof setTimeout> | undefined;
let open = false;

/** Looks at once and then every two seconds, until it is closed. */
export function setOpen(wanted: boolean): void {
  if (wanted === open) return;
  open = wanted;
  clearTimeout(timer);
  if (open) void look();
}

async function look(): Promise<void> {
  if (!document.hidden) await show();
  if (open) timer = setTimeout(() => void look(), LOOK_EVERY_MS);
}

async function show(): Promise<void> {
  const note = byId("fleet-note");
  let models: FleetModel[];
  try {
    models = await fleet();
  } catch (error) {
    const untold = error instanceof Problem && error.status === 404;
    return sayOrHide(note, untold ? "This gateway does not tell of its fleet." : `${capital((error as Error).message)}. Trying again …`);
  }
  const workers = models.reduce((sum, model) => sum + model.workers.length, 0);
  const nothing = models.length === 0 ? "No model is served yet." : "No worker runs: the fleet is scaled to zero. The next request starts one.";
  sayOrHide(note, workers === 0 ? nothing : undefined);
  const now = Date.now();
  const cards = models.map((model) => card(model, remember(model, now), now));
  byId("fleet-models").replaceChildren(...cards);
}

/** Image-steps a second, of workers that step now: the others make none. */
function pace(workers: Worker[]): number {
  const stepping = workers.filter((worker) => worker.images_stepping > 0);
  return stepping.reduce((sum, worker) => sum + (worker.image_steps_per_second ?? 0), 0);
}

function total(workers: Worker[], field: "images_stepping" | "images_in_batch_max" | "jobs_held"): number {
  return workers.reduce((sum, worker) => sum + worker[field], 0);
}

function remember({ name, pending, workers }: FleetModel, now: number): History {
  const history = histories.get(name) ?? { pending: [], stepping: [], pace: [] };
  histories.set(name, history);
  const add = (samples: Sample[], value: number): void => {
    samples.push({ time: now, value });
    while (samples[0] !== undefined && now - samples[0].time > SPAN_MS) samples.shift();
  };
  add(history.pending, pending);
  add(history.stepping, total(workers, "images_stepping"));
  add(history.pace, pace(workers));
  return history;
}

function card(model: FleetModel, history: History, now: number): HTMLElement {
  const { name, pending, workers } = model;
  const stepping = total(workers, "images_stepping");
  const places = total(workers, "images_in_batch_max");
  const speed = pace(workers);
  const head = make(
    "div",
    { class: "sheet-head" },
    make("h3", {}, name),
    make("p", { class: "hint" }, workers.length === 0 ? "scaled to zero" : count(workers.length, "worker")),
  );
  const plots = make(
    "div",
    { class: "plots" },
    curve("Queue", String(pending), count(pending, "request waits", "requests wait"), history.pending, now),
    curve("Batch", String(stepping), places > 0 ? `${stepping === 1 ? "image steps" : "images step"}, ${places} fit` : "images step", history.stepping, now, places),
    curve("Pace", speed > 0 ? speed.toFixed(speed < 10 ? 1 : 0) : "0", "image-steps a second", history.pace, now),
  );
  return make("section", { class: "fleet-model", "aria-label": `Model ${name}` }, head, plots, ...(workers.length > 0 ? [table(workers, now)] : []));
}

function curve(title: string, value: string, unit: string, samples: Sample[], now: number, room?: number): HTMLElement {
  const highest = samples.reduce((most, sample) => Math.max(most, sample.value), 0);
  const top = room !== undefined && room >= Math.max(1, highest) ? room : ceiling(highest);
  const label = `${title} over the last five minutes: now ${value}, at most ${Math.round(highest)}`;
  return make(
    "figure",
    { class: "plot" },
    make("figcaption", {}, make("span", { class: "plot-title" }, title), make("strong", {}, value), make("span", { class: "hint" }, unit)),
    make("div", { class: "plot-area" }, plot(samples, now, SPAN_MS, top, label), make("span", { class: "plot-top", "aria-hidden": "true" }, String(top))),
    make("div", { class: "plot-axis", "aria-hidden": "true" }, make("span", {}, "5 min ago"), make("span", {}, "now")),
  );
}

function table(workers: Worker[], now: number): HTMLElement {
  const heads = ["Worker", "State", "Pools", "Jobs", "Batch", "Image-steps/s", "Up"];
  const rows = workers.map((worker) => {
    const cells = Array.from({ length: Math.min(worker.images_in_batch_max, 32) }, (_, place) =>
      make("i", place < worker.images_stepping ? { class: "full" } : {}),
    );
    const batch = make("span", { class: "batch" });
    batch.append(make("span", { class: "cells", "aria-hidden": "true" }, ...cells), `${worker.images_stepping} / ${worker.images_in_batch_max}`);
    const up = Date.parse(worker.since);
    const values: (Node | string)[] = [
      worker.worker,
      make("span", { class: "state", "data-state": worker.state }, worker.state === "draining" ? "draining" : worker.images_stepping > 0 ? "stepping" : "idle"),
      worker.pools.join(", "),
      String(worker.jobs_held),
      batch,
      worker.image_steps_per_second === undefined ? "—" : worker.image_steps_per_second.toFixed(1),
      Number.isNaN(up) ? "—" : duration(Math.max(0, (now - up) / 1000)),
    ];
    return make("tr", {}, ...values.map((value, column) => (column === 0 ? make("th", { scope: "row" }, value) : make("td", { "data-head": heads[column] }, value))));
  });
  return make(
    "table",
    { class: "workers" },
    make("caption", { class: "unseen" }, "Workers"),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows),
  );
}
