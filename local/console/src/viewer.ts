// The picture that is looked at, and what can be done with its job. Its elements stay as they are, so that whoever is at one
// of its buttons stays there.

import { imageAddress } from "./api.ts";
import { again, fraction, imagesOf, type Job } from "./job.ts";
import { byId, define, make, say, sayOrHide } from "./page.ts";
import { isTerminal } from "./wire.ts";
import { mark, milliseconds, name, standing, STATUS_WORDS } from "./words.ts";

export interface Actions {
  cancel(job: Job, keep: "nothing" | "partial"): Promise<void>;
  again(job: Job): Promise<void>;
  vary(job: Job): Promise<void>;
  use(job: Job): void;
  copy(job: Job): Promise<void>;
}

const frame = byId("frame");
const preview = byId<HTMLImageElement>("preview");
const picture = byId<HTMLImageElement>("picture");
const pictureLink = byId<HTMLAnchorElement>("picture-link");
let shown: Job | undefined;

export function setUp(actions: Actions): void {
  const act = (id: string, action: (job: Job) => Promise<void> | void): void => {
    const button = byId<HTMLButtonElement>(id);
    button.addEventListener("click", async () => {
      if (shown === undefined || button.getAttribute("aria-disabled") === "true") return;
      button.setAttribute("aria-disabled", "true");
      try {
        await action(shown);
      } finally {
        button.removeAttribute("aria-disabled");
      }
    });
  };
  act("do-cancel", (job) => actions.cancel(job, "nothing"));
  act("do-keep", (job) => actions.cancel(job, "partial"));
  act("do-again", (job) => actions.again(job));
  act("do-vary", (job) => actions.vary(job));
  act("do-use", (job) => actions.use(job));
  act("do-copy", async (job) => {
    await actions.copy(job);
    const button = byId("do-copy");
    say(button, "Copied");
    setTimeout(() => say(button, "Copy parameters"), 2000);
  });
  picture.addEventListener("load", () => {
    frame.classList.add("fixed");
    shapeAs(picture);
  });
  preview.addEventListener("load", () => shapeAs(preview));
  picture.addEventListener("error", () => {
    if (picture.getAttribute("src") !== null) say(byId("frame-text"), "The store no longer has this picture");
  });
}

/** Shows a job and one of its images, or why there is none. */
export function show(job: Job | undefined, image: number, nothing: string): void {
  byId("viewer-empty").hidden = job !== undefined;
  byId("viewer-job").hidden = job === undefined;
  if (job === undefined) {
    say(byId("viewer-empty-text"), nothing);
    shown = undefined;
    return;
  }
  if (shown?.id !== job.id) preview.removeAttribute("src");
  shown = job;
  byId("viewer").dataset["job"] = job.id;
  showPicture(job, image);
  showStrip(job, image);

  byId("job-status").dataset["status"] = job.status;
  say(byId("job-status-text"), STATUS_WORDS[job.status]);
  say(byId("job-standing"), standing(job));
  showProgress(job);
  const prompt = byId("job-prompt");
  prompt.classList.toggle("unknown", job.request === undefined);
  say(prompt, job.request?.prompt ?? "Made elsewhere; its prompt is not known here");
  sayOrHide(byId("job-negative"), job.request?.negative_prompt && `without: ${job.request.negative_prompt}`);
  define(byId("job-parameters"), parameters(job, image));
  list(byId("job-warnings"), job.warnings);
  const violations = job.error?.violations ?? [];
  list(byId("job-violations"), violations.map(({ field, value, allowed }) => `${field} is ${value}; allowed: ${allowed}`));
  showActions(job, image);
  showTimings(job);
}

function showPicture(job: Job, image: number): void {
  const stored = job.images.find(({ index }) => index === image);
  const [width, height] = [Number(job.request?.width), Number(job.request?.height)];
  if (width > 0 && height > 0) frame.style.setProperty("--shape", String(width / height));
  frame.style.setProperty("--formed", String(fraction(job) ?? (isTerminal(job.status) ? 1 : 0)));
  frame.dataset["status"] = job.status;

  const forming = image === 0 ? job.preview : undefined;
  preview.hidden = forming === undefined;
  if (forming !== undefined && preview.getAttribute("src") !== forming) preview.src = forming;

  pictureLink.hidden = stored === undefined;
  if (stored === undefined) {
    picture.removeAttribute("src");
    picture.alt = "";
    frame.classList.remove("fixed");
  } else {
    const address = imageAddress(job.id, stored.index);
    if (picture.getAttribute("src") !== address) {
      frame.classList.remove("fixed");
      picture.src = address;
    }
    pictureLink.href = address;
    picture.alt = name(job);
  }
  const empty = stored === undefined && forming === undefined;
  const waiting = job.status === "processing" ? (image === 0 ? "Exposing" : `Picture ${image + 1} forms unseen`) : STATUS_WORDS[job.status];
  sayOrHide(byId("frame-text"), empty ? waiting : undefined);
}

/** Where nobody says how large a picture is to be, it says so itself. */
function shapeAs({ naturalWidth, naturalHeight }: HTMLImageElement): void {
  if (naturalWidth > 0 && naturalHeight > 0) frame.style.setProperty("--shape", String(naturalWidth / naturalHeight));
}

function showStrip(job: Job, image: number): void {
  const strip = byId("strip");
  const count = imagesOf(job);
  strip.hidden = count < 2;
  if (count < 2) return strip.replaceChildren();
  while (strip.children.length > count) strip.lastElementChild?.remove();
  for (let index = 0; index < count; index += 1) {
    let item = strip.children[index];
    if (item === undefined) {
      item = make("li", {}, make("a", {}, make("img", { alt: "", hidden: true }), make("span", {}, String(index + 1))));
      strip.append(item);
    }
    const [link, thumbnail] = [item.querySelector("a"), item.querySelector("img")];
    if (link === null || thumbnail === null) continue;
    link.href = `#/jobs/${job.id}/${index}`;
    link.setAttribute("aria-label", `Picture ${index + 1} of ${count}`);
    if (index === image) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    const stored = job.images.some((candidate) => candidate.index === index);
    const address = stored ? imageAddress(job.id, index) : index === 0 ? job.preview : undefined;
    thumbnail.hidden = address === undefined;
    if (address !== undefined && thumbnail.getAttribute("src") !== address) thumbnail.src = address;
  }
}

function showProgress(job: Job): void {
  const progress = byId<HTMLProgressElement>("job-progress");
  progress.hidden = isTerminal(job.status);
  const done = fraction(job);
  if (job.status === "processing" && done !== undefined) progress.value = done;
  else progress.removeAttribute("value");
}

function parameters(job: Job, image: number): [string, string][] {
  const { request } = job;
  const seed = job.images.find(({ index }) => index === image)?.seed ?? (job.seed === undefined ? undefined : job.seed + image);
  const entries: [string, unknown][] = [
    ["Model", job.model],
    ["Size", request?.width !== undefined && request.height !== undefined ? `${request.width} × ${request.height}` : undefined],
    ["Steps", request?.num_inference_steps],
    ["Guidance", request?.guidance_scale],
    ["Seed", seed],
    ["Sampler", request?.scheduler],
    ["Priority", request?.priority],
    ["Worker", job.worker],
    ["Job", job.id],
  ];
  return entries.filter(([, value]) => value !== undefined).map(([name, value]) => [name, String(value)]);
}

function showActions(job: Job, image: number): void {
  const ended = isTerminal(job.status);
  const known = again(job) !== undefined;
  const stored = job.images.find(({ index }) => index === image);
  const focused = document.activeElement;
  const offer = (id: string, offered: boolean): void => {
    const control = byId(id);
    control.hidden = !offered;
    if (!offered && control === focused) byId("viewer-title").focus();
  };
  offer("do-cancel", !ended);
  offer("do-keep", job.status === "processing");
  offer("do-again", ended && known);
  offer("do-vary", ended && known);
  offer("do-use", known);
  offer("do-copy", known);
  offer("do-save", stored !== undefined);
  if (stored !== undefined) {
    const link = byId<HTMLAnchorElement>("do-save");
    link.href = imageAddress(job.id, stored.index);
    link.download = `${job.id}-${stored.index}.${stored.content_type.split("/")[1] ?? "png"}`;
  }
}

function showTimings(job: Job): void {
  const { timings } = job;
  byId("job-timings").hidden = timings === undefined;
  if (timings === undefined) return;
  define(byId("job-timings-list"), [
    ["Queued", milliseconds(timings.queued_ms)],
    ["Loading the model", milliseconds(timings.loading_ms)],
    ["Encoding the prompt", milliseconds(timings.encoding_ms)],
    ["Denoising", milliseconds(timings.denoising_ms)],
    ["Decoding", milliseconds(timings.decoding_ms)],
    ["Storing", milliseconds(timings.storing_ms)],
  ]);
}

function list(element: HTMLElement, texts: string[]): void {
  element.hidden = texts.length === 0;
  const there = Array.from(element.children, (item) => item.textContent);
  if (JSON.stringify(there) !== JSON.stringify(texts)) element.replaceChildren(...texts.map((text) => make("li", {}, text)));
}

/** What the title of the page says of a job. */
export function title(job: Job | undefined): string {
  return job === undefined || isTerminal(job.status) ? "Darkroom" : `${mark(job)} · Darkroom`;
}
