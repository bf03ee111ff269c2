// The contact sheet: every picture of the newest jobs, and a frame for each job that has none.

import { imageAddress } from "./api.ts";
import { fraction, type Job } from "./job.ts";
import { byId, make, say } from "./page.ts";
import { isTerminal } from "./wire.ts";
import { count, mark, name } from "./words.ts";

const sheet = byId("sheet");
const frames = new Map<string, HTMLLIElement>();

/** Shows jobs, newest first; `selected` is the picture that is looked at. */
export function show(jobs: readonly Job[], selected: { job: string; image: number } | undefined): void {
  const wanted: [string, Job, number, number][] = jobs.flatMap((job) =>
    job.images.length === 0
      ? [[job.id, job, 0, 1] as [string, Job, number, number]]
      : job.images.map(({ index }) => [`${job.id}/${index}`, job, index, job.images.length] as [string, Job, number, number]),
  );
  const keys = new Set(wanted.map(([key]) => key));
  for (const [key, frame] of frames) {
    if (keys.has(key)) continue;
    frame.remove();
    frames.delete(key);
  }
  let place: Element | null = sheet.firstElementChild;
  for (const [key, job, image, images] of wanted) {
    let frame = frames.get(key);
    if (frame === undefined) {
      frame = make("li", {}, make("a", {}, make("img", { alt: "", loading: "lazy", hidden: true }), make("span", { class: "tag" })));
      frames.set(key, frame);
    }
    if (frame === place) place = place.nextElementSibling;
    else sheet.insertBefore(frame, place);
    fill(frame, job, image, images, selected?.job === job.id && selected.image === image);
  }
  byId("sheet-empty").hidden = jobs.length > 0;
  say(byId("sheet-count"), jobs.length > 0 ? count(jobs.length, "job") : "");
}

function fill(frame: HTMLLIElement, job: Job, image: number, images: number, selected: boolean): void {
  const [link, thumbnail, tag] = [frame.querySelector("a"), frame.querySelector("img"), frame.querySelector("span")];
  if (link === null || thumbnail === null || tag === null) return;
  frame.dataset["status"] = job.status;
  frame.style.setProperty("--formed", String(fraction(job) ?? 0));
  link.href = `#/jobs/${job.id}/${image}`;
  if (selected) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
  const stored = job.images.length > 0;
  const address = stored ? imageAddress(job.id, image) : isTerminal(job.status) ? undefined : job.preview;
  thumbnail.hidden = address === undefined;
  if (address !== undefined && thumbnail.getAttribute("src") !== address) thumbnail.src = address;
  tag.hidden = job.status === "completed";
  say(tag, mark(job));
  const which = images > 1 ? `, picture ${image + 1} of ${images}` : "";
  const label = `${name(job)}${which}, ${mark(job).toLowerCase()}`;
  if (link.getAttribute("aria-label") !== label) link.setAttribute("aria-label", label);
  link.title = name(job);
}
