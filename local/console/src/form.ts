// The request's form. What is allowed, the gateway decides; here it is only said.

import { byId, make, say, sayOrHide } from "./page.ts";
import type { Model, Request, Violation } from "./wire.ts";
import { capital } from "./words.ts";

const DRAFT = "darkroom.draft";
const FIELDS = [
  "prompt",
  "negative_prompt",
  "model",
  "width",
  "height",
  "num_inference_steps",
  "guidance_scale",
  "num_images",
  "seed",
  "scheduler",
  "priority",
] as const;
type Field = (typeof FIELDS)[number];
const NUMBERS: readonly Field[] = ["width", "height", "num_inference_steps", "guidance_scale", "num_images", "seed"];
const SHAPES: [string, number, number][] = [
  ["Square", 1, 1],
  ["Portrait", 3, 4],
  ["Landscape", 4, 3],
  ["Tall", 9, 16],
  ["Wide", 16, 9],
];
const IMAGES_MAX = 8;
/** A hint keeps a worker for two minutes. */
const WAKE_EVERY_MS = 60_000;

const form = byId<HTMLFormElement>("request");
const submit = byId<HTMLButtonElement>("submit");
const modelSelect = byId<HTMLSelectElement>("model");
let models: Model[] = [];
/** What was filled in when the page was left. */
let draft = localStorage.getItem(DRAFT);
/** When hints were given, by model. */
const woken = new Map<string, number>();

export interface Actions {
  /** Rejects with what is to be shown. */
  submit(request: Request): Promise<void>;
  /** The names of samplers, when somebody wants to choose one. */
  schedulers(): Promise<string[]>;
  /** Somebody begins to write a prompt. */
  wake(model: string): Promise<void>;
}

export function setUp(actions: Actions): void {
  const counts = byId("counts");
  for (let count = 1; count <= IMAGES_MAX; count += 1) {
    const attributes = { type: "radio", name: "num_images", value: count, id: `num_images-${count}`, checked: count === 1 };
    counts.append(make("label", {}, make("input", attributes), make("span", {}, String(count))));
  }
  const shapes = byId("shapes");
  for (const [name, across, down] of SHAPES) {
    const button = make("button", { type: "button", "aria-pressed": "false", title: `${name}, ${across}:${down}` });
    const picture = make("span", { class: "shape", "data-shape": `${across}-${down}`, "aria-hidden": "true" });
    button.append(picture, make("span", { class: "unseen" }, name));
    button.addEventListener("click", () => {
      const size = sizeOf(chosen(), across / down);
      write("width", size[0]);
      write("height", size[1]);
      changed();
    });
    shapes.append(button);
  }
  pair("num_inference_steps", "steps-range");
  pair("guidance_scale", "guidance-range");
  byId("seed-clear").addEventListener("click", () => {
    write("seed", "");
    changed();
  });
  modelSelect.addEventListener("change", () => applyDefaults());
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void send(actions);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  const prompt = byId("prompt");
  for (const sign of ["focus", "input"]) prompt.addEventListener(sign, () => wake(actions));
  const more = byId<HTMLDetailsElement>("more");
  more.addEventListener("toggle", () => void listSchedulers(actions), { once: true });
}

/** Whoever writes a prompt will want a worker: a cold start is best spent while he writes. */
function wake(actions: Actions): void {
  const [model, now] = [modelSelect.value, performance.now()];
  if (model === "" || now - (woken.get(model) ?? -Infinity) < WAKE_EVERY_MS) return;
  woken.set(model, now);
  void actions.wake(model);
}

async function listSchedulers(actions: Actions): Promise<void> {
  const select = byId<HTMLSelectElement>("scheduler");
  const names = await actions.schedulers().catch(() => []);
  const there = new Set(Array.from(select.options, (option) => option.value));
  select.append(...names.filter((name) => !there.has(name)).map((name) => make("option", { value: name }, name)));
}

/** A number and its slider show the same. */
function pair(field: Field, range: string): void {
  const [number, slider] = [byId<HTMLInputElement>(field), byId<HTMLInputElement>(range)];
  slider.addEventListener("input", () => (number.value = slider.value));
  number.addEventListener("input", () => (slider.value = number.value));
}

async function send(actions: Actions): Promise<void> {
  // A second press while the first is on its way is the same wish.
  if (submit.getAttribute("aria-disabled") === "true") return;
  showErrors([], undefined);
  submit.setAttribute("aria-disabled", "true");
  say(submit, "Sending …");
  try {
    await actions.submit(request());
  } finally {
    submit.removeAttribute("aria-disabled");
    say(submit, "Develop");
  }
}

/** What is filled in. Empty fields are the model's business. */
export function request(): Request {
  const request: Record<string, unknown> = { prompt: read("prompt") };
  for (const field of FIELDS) {
    const text = read(field).trim();
    if (field === "prompt" || text === "" || (field === "priority" && text === "normal")) continue;
    request[field] = NUMBERS.includes(field) && Number.isFinite(Number(text)) ? Number(text) : text;
  }
  return request as unknown as Request;
}

/** Fills in a request. */
export function fill(request: Request): void {
  if (request.model !== undefined && models.some(({ name }) => name === request.model)) modelSelect.value = request.model;
  applyDefaults();
  for (const field of FIELDS) {
    const value = request[field];
    if (field === "model" || (value === undefined && NUMBERS.includes(field) && field !== "seed")) continue;
    write(field, value ?? (field === "priority" ? "normal" : ""));
  }
  if (request.scheduler !== undefined || request.priority !== undefined) byId<HTMLDetailsElement>("more").open = true;
  changed();
}

/** Shows what is served; the first time with what was filled in when the page was left. */
export function showModels(served: Model[]): void {
  const before = modelSelect.value;
  const first = models.length === 0;
  if (JSON.stringify(served.map(withoutPending)) !== JSON.stringify(models.map(withoutPending))) {
    models = served;
    modelSelect.replaceChildren(...served.map(({ name }) => make("option", { value: name }, name)));
    if (served.some(({ name }) => name === before)) modelSelect.value = before;
    else applyDefaults();
  }
  models = served;
  const model = chosen();
  const hint = model === undefined ? "No model is served." : `${model.family}; ${model.pending} in its queue`;
  say(byId("model-hint"), hint);
  if (first && served.length > 0) restore();
}

function withoutPending({ name, defaults, sides }: Model): unknown {
  return [name, defaults, sides];
}

function chosen(): Model | undefined {
  return models.find(({ name }) => name === modelSelect.value);
}

function applyDefaults(): void {
  const model = chosen();
  if (model === undefined) return;
  const { defaults, sides } = model;
  for (const field of ["width", "height", "num_inference_steps", "guidance_scale"] as const) write(field, defaults[field]);
  for (const field of ["width", "height"]) {
    const input = byId<HTMLInputElement>(field);
    [input.min, input.max, input.step] = sides.map(String) as [string, string, string];
  }
  say(byId("size-hint"), `Multiples of ${sides[2]}, ${sides[0]} to ${sides[1]}`);
  const own = byId<HTMLSelectElement>("scheduler").options[0];
  if (own !== undefined) own.textContent = `the model’s: ${defaults.scheduler}`;
  changed();
}

/** About as many pixels as the model's own size, in other proportions. */
function sizeOf(model: Model | undefined, ratio: number): [number, number] {
  const { width, height } = model?.defaults ?? { width: 512, height: 512 };
  const [smallest, largest, multiple] = model?.sides ?? [64, 1024, 8];
  const side = (length: number): number =>
    Math.min(largest, Math.max(smallest, Math.round(length / multiple) * multiple));
  return [side(Math.sqrt(width * height * ratio)), side(Math.sqrt((width * height) / ratio))];
}

function changed(): void {
  for (const [index, [, across, down]] of SHAPES.entries()) {
    const [width, height] = sizeOf(chosen(), across / down);
    const pressed = read("width") === String(width) && read("height") === String(height);
    byId("shapes").children[index]?.setAttribute("aria-pressed", String(pressed));
  }
  localStorage.setItem(DRAFT, JSON.stringify(Object.fromEntries(FIELDS.map((field) => [field, read(field)]))));
}

function restore(): void {
  if (draft === null) return;
  const fields = JSON.parse(draft) as Partial<Record<Field, string>>;
  draft = null;
  if (fields.model === undefined || !models.some(({ name }) => name === fields.model)) return;
  modelSelect.value = fields.model;
  applyDefaults();
  for (const field of FIELDS) if (field !== "model" && fields[field] !== undefined) write(field, fields[field]);
  changed();
}

function read(field: Field): string {
  const control = form.elements.namedItem(field);
  return control === null ? "" : (control as HTMLInputElement | RadioNodeList).value;
}

function write(field: Field, value: string | number): void {
  const text = String(value);
  if (field === "scheduler" && text !== "") {
    const select = byId<HTMLSelectElement>("scheduler");
    if (!Array.from(select.options).some((option) => option.value === text)) select.append(make("option", { value: text }, text));
  }
  (form.elements.namedItem(field) as HTMLInputElement | RadioNodeList).value = text;
  if (field === "num_inference_steps") byId<HTMLInputElement>("steps-range").value = text;
  if (field === "guidance_scale") byId<HTMLInputElement>("guidance-range").value = text;
}

/** Shows each broken rule at its field, the others above the button, and goes to the first. */
export function showErrors(violations: Violation[], message: string | undefined): void {
  const left: string[] = [];
  for (const field of FIELDS) {
    sayOrHide(byId(`${field}-error`), undefined);
    for (const control of controls(field)) control.removeAttribute("aria-invalid");
  }
  for (const { field, value, allowed } of violations) {
    const known = FIELDS.find((candidate) => candidate === field);
    if (known === undefined) {
      left.push(`${field} is ${value}; allowed: ${allowed}`);
      continue;
    }
    if (known === "scheduler" || known === "priority") byId<HTMLDetailsElement>("more").open = true;
    sayOrHide(byId(`${known}-error`), `${capital(`is ${value}`)}; allowed: ${allowed}`);
    for (const control of controls(known)) control.setAttribute("aria-invalid", "true");
  }
  if (violations.length === 0 && message !== undefined) left.push(message);
  sayOrHide(byId("request-error"), left.join("\n"));
  form.querySelector<HTMLElement>("[aria-invalid]")?.focus();
}

function controls(field: Field): HTMLElement[] {
  const control = form.elements.namedItem(field);
  return control instanceof RadioNodeList ? (Array.from(control) as HTMLElement[]) : [control as HTMLElement];
}
