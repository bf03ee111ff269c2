// What the console makes of documents, events and samples, without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

/** A module of src/, which is TypeScript. */
async function source(name) {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(`../src/${name}.ts`, import.meta.url))],
    bundle: true,
    format: "esm",
    write: false,
  });
  return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
}
const { afterDocument, afterEvent, again, fraction, metadataOf } = await source("job");
const { announcement, duration, standing } = await source("words");
const { ceiling, runs } = await source("plot");

const CREATED = "2026-01-01T00:00:00Z";
const document = (status, more = {}) => ({ id: "j", status, model: "shapes", created: CREATED, updated: CREATED, ...more });
const event = (kind, data = {}) => ({ type: `darkroom.job.${kind}`, time: CREATED, data });
const REQUEST = { prompt: "a ring", num_images: 2 };
const IMAGE = { index: 0, content_type: "image/png", size_bytes: 1, sha256: "00", seed: 9 };

test("a job goes through its life by events", () => {
  let job = afterDocument(undefined, document("pending", { queue_position: 2, estimated_time: 7.4 }), REQUEST);
  assert.equal(standing(job), "2 jobs go before it · done in about 7 s");
  job = afterEvent(job, event("accepted", { seed: 9 }));
  job = afterEvent(job, event("started", { worker: "w" }));
  assert.deepEqual([job.status, job.queuePosition, job.estimatedTime, job.worker, job.seed], ["processing", undefined, undefined, "w", 9]);
  job = afterEvent(job, event("progress", { step: 10, steps: 40, remaining_ms: 1500, preview: "AAAA" }));
  job = afterEvent(job, event("progress", { step: 11, steps: 40, remaining_ms: 1400 }));
  assert.equal(fraction(job), 11 / 40);
  assert.equal(job.preview, "data:image/jpeg;base64,AAAA", "the last preview stays until there is another");
  assert.equal(standing(job), "Step 11 of 40 · about 1 s left");
  job = afterEvent(job, event("completed", { images: [IMAGE], warnings: ["cut off"] }));
  assert.deepEqual([job.status, job.images.length, job.warnings], ["completed", 1, ["cut off"]]);
});

test("what has ended stays as it is", () => {
  const ended = afterDocument(undefined, document("cancelled"));
  for (const late of [event("started", { worker: "w" }), event("progress", { step: 1, steps: 2, remaining_ms: 1 }), event("completed", { images: [IMAGE] })]) {
    assert.equal(afterEvent(ended, late), ended, late.type);
  }
  assert.equal(afterDocument(ended, document("processing")), ended);
});

test("a job that is tried again goes back to the queue", () => {
  const running = afterEvent(afterDocument(undefined, document("pending")), event("started", { worker: "w" }));
  assert.equal(afterDocument(running, document("pending", { queue_position: 0 })).status, "pending");
});

test("a job that was cancelled before anybody had it has no seed", () => {
  assert.equal(afterEvent(afterDocument(undefined, document("pending"), REQUEST), event("cancelled")).seed, undefined);
});

test("events of unknown kinds change nothing", () => {
  const job = afterDocument(undefined, document("pending"));
  assert.equal(afterEvent(job, event("polished")), job);
});

test("what was asked for is found in this browser, else in the metadata, and makes the same again", () => {
  const elsewhere = document("completed", { images: [IMAGE], metadata: { console: { prompt: "a star" } } });
  assert.equal(afterDocument(undefined, elsewhere).request.prompt, "a star");
  assert.equal(afterDocument(undefined, elsewhere, REQUEST).request.prompt, "a ring");
  assert.deepEqual(again(afterDocument(undefined, elsewhere)), { model: "shapes", prompt: "a star", seed: 9 });
  assert.equal(again(afterDocument(undefined, document("completed", { metadata: { console: "no request" } }))), undefined);
});

test("metadata stays within what the gateway takes", () => {
  assert.deepEqual(metadataOf(REQUEST), { console: REQUEST });
  assert.equal(metadataOf({ prompt: "ü".repeat(2000) }), undefined);
});

test("failures say why", () => {
  const failed = afterEvent(afterDocument(undefined, document("pending"), REQUEST), event("failed", { error: { code: "lost", message: "no room" } }));
  assert.equal(announcement(failed), "Failed: a ring. no room.");
});

test("durations are as coarse as their size", () => {
  for (const [seconds, words] of [[0.3, "less than a second"], [1, "1 s"], [89, "89 s"], [120, "2 min"], [7200, "2.0 h"], [864_000, "10 days"]]) {
    assert.equal(duration(seconds), words);
  }
});

test("plots have round tops, and gaps where nobody looked", () => {
  for (const [value, top] of [[0, 1], [1, 1], [1.2, 2], [3, 5], [5, 5], [6, 10], [41.5, 50], [101, 200]]) assert.equal(ceiling(value), top);
  const samples = [0, 2000, 4000, 60_000, 62_000].map((time) => ({ time, value: 1 }));
  assert.deepEqual(runs(samples).map((run) => run.length), [3, 2]);
});
