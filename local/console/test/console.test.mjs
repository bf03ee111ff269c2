// The console in a real browser, on a real platform.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, afterEach, before, describe, test } from "node:test";
import { newVisitor, screenshot, startBrowser, startGuardedGateway, startPlatform, until } from "./platform.mjs";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PROMPT = "a red star on a white background";
/** Small enough to be done in a second, in several, and as much work as can be asked for, to be watched and then cancelled. */
const QUICK = { width: 128, height: 128, steps: 10 };
const MIDDLING = { width: 256, height: 256, steps: 100, images: 4 };
const SLOW = { width: 512, height: 512, steps: 100, images: 8 };

let platform;
let browser;
let visitor;

before(async () => {
  platform = await startPlatform();
  browser = await startBrowser();
});

after(async () => {
  await browser?.close();
  await platform?.stop();
});

afterEach(async (context) => {
  if (visitor === undefined) return;
  const { page, faults } = visitor;
  if (!page.isClosed()) await screenshot(page, `end of ${context.name}`.replaceAll(/[^\w]+/g, "-"));
  await visitor.context.close();
  visitor = undefined;
  assert.deepEqual(faults, [], "errors in the page");
});

/** A new browser on the console's page, when it knows the models. */
async function visit({ url = platform.url, path = "/", transport = "nats", ...options } = {}) {
  visitor = await newVisitor(browser, options);
  const { page } = visitor;
  if (transport === "sse") {
    await page.route("**/console/config.json", (route) => route.fulfill({ json: { nats: null } }));
  }
  await page.goto(url + path);
  await page.locator("#model option").first().waitFor({ state: "attached" });
  return page;
}

async function fillIn(page, { prompt = PROMPT, width, height, steps, images, seed }) {
  await page.getByLabel("Prompt", { exact: true }).fill(prompt);
  if (width !== undefined) await page.getByLabel("Width").fill(String(width));
  if (height !== undefined) await page.getByLabel("Height").fill(String(height));
  if (steps !== undefined) await page.getByLabel("Steps", { exact: true }).fill(String(steps));
  if (images !== undefined) await page.getByRole("radio", { name: String(images), exact: true }).check({ force: true });
  if (seed !== undefined) await page.getByLabel("Seed").fill(String(seed));
}

const jobIn = (address) => /#\/jobs\/([\w-]+)/.exec(String(address))?.[1];
const jobOf = (page) => jobIn(page.url());
const press = (page) => page.getByRole("button", { name: "Develop" }).click();
/** The job that comes of doing something. */
async function jobOfDoing(page, doing) {
  const before = jobOf(page);
  await doing();
  await page.waitForURL((url) => ![undefined, before].includes(jobIn(url)));
  return jobOf(page);
}
const develop = (page) => jobOfDoing(page, () => press(page));
/** What is seen of the job in the page's address. */
const seen = (page, selector) => page.locator(`#viewer[data-job="${jobOf(page)}"] ${selector}`);
const status = (page) => page.locator("#job-status").getAttribute("data-status");
const becomes = (page, wanted) => seen(page, `#job-status[data-status="${wanted}"]`).waitFor();
const previewed = (page) => seen(page, "#preview[src]").waitFor();
const fixed = (page) => seen(page, "#frame.fixed").waitFor();
const recorded = async (job) => (await fetch(`${platform.gateway}/v1/jobs/${job}`)).json();
/** No transition is on its way, so that colours are those that are meant. */
const still = (page) =>
  page.waitForFunction(() => document.getAnimations().every(({ effect, playState }) => playState === "finished" || effect.getTiming().iterations === Infinity));

async function cancelled(page) {
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await becomes(page, "cancelled");
}

test("who clicks into the prompt box wakes a worker, once", async () => {
  const page = await visit();
  const hints = [];
  page.on("request", (request) => request.url().endsWith("/wake") && hints.push(new URL(request.url()).pathname));
  const answered = page.waitForResponse("**/v1/models/shapes/wake");
  await page.getByLabel("Prompt", { exact: true }).click();
  assert.equal((await answered).status(), 202);
  await fillIn(page, {});
  assert.deepEqual(hints, ["/v1/models/shapes/wake"]);
});

test("the gateway serves what is built, and its page may run nothing else", async () => {
  for (const [path, name] of [["/", "index.html"], ...["console.js", "console.css", "icon.svg"].map((name) => [`/console/${name}`, name])]) {
    const answer = await fetch(platform.url + path);
    assert.equal(answer.status, 200, path);
    const served = Buffer.from(await answer.arrayBuffer());
    assert.ok(served.equals(await readFile(new URL(`../dist/${name}`, import.meta.url))), `${path} is not dist/${name}`);
  }
  const policy = (await fetch(platform.url)).headers.get("content-security-policy") ?? "";
  for (const directive of ["default-src 'self'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]) {
    assert.ok(policy.includes(directive), `${directive} is not in ${policy}`);
  }
});

for (const [transport, words] of [
  ["nats", "Live over NATS WebSocket"],
  ["sse", "Live by server-sent events"],
]) {
  test(`a picture forms in front of one's eyes and is completed, over ${transport}`, async () => {
    const page = await visit({ transport });
    await page.getByText(words).waitFor();
    const asked = [];
    page.on("request", (request) => asked.push(request.url()));
    await fillIn(page, { width: 128, height: 128, steps: 40, images: 2, seed: 7 });
    await develop(page);
    await previewed(page);
    await becomes(page, "completed");
    await fixed(page);
    assert.equal(await page.getByRole("list", { name: "Pictures of this job" }).getByRole("link").count(), 2);
    const parameters = await page.locator("#job-parameters").innerText();
    for (const part of ["shapes", "128 × 128", "40", "7", "generate-"]) assert.ok(parameters.includes(part), `${part} is not in ${parameters}`);
    assert.equal(asked.some((address) => address.includes("/events")), transport === "sse", "event streams that were opened");
    assert.deepEqual((await recorded(jobOf(page))).images.map(({ seed }) => seed), [7, 8]);
    await page.locator("#said").filter({ hasText: "Completed: a red star" }).waitFor();
  });
}

test("events come by server-sent events when NATS cannot be reached", async () => {
  visitor = await newVisitor(browser);
  const { page, faults } = visitor;
  await page.route("**/console/config.json", (route) => route.fulfill({ json: { nats: { url: "ws://127.0.0.1:9", tenant: "default" } } }));
  await page.goto(platform.url);
  await page.getByText("Live by server-sent events").waitFor();
  await fillIn(page, QUICK);
  await develop(page);
  await becomes(page, "completed");
  // The browser tells of the connection that could not be made; nothing else is wrong.
  assert.ok(faults.every((fault) => fault.includes("ws://127.0.0.1:9")), faults.join("\n"));
  faults.length = 0;
});

test("a job that waits shows its place in the queue and when it will be done", async () => {
  const page = await visit();
  await fillIn(page, SLOW);
  await develop(page);
  await becomes(page, "processing");
  const first = jobOf(page);
  // More than a worker holds at a time, so that the last one waits.
  const ids = [];
  for (let count = 0; count < 12; count += 1) {
    const body = JSON.stringify({ prompt: PROMPT, width: 256, height: 256, num_inference_steps: 100, num_images: 8 });
    const answer = await fetch(`${platform.gateway}/v1/jobs`, { method: "POST", headers: { "content-type": "application/json" }, body });
    ids.push((await answer.json()).id);
  }
  await fillIn(page, { ...SLOW, seed: 3 });
  await develop(page);
  await page.locator("#job-standing").filter({ hasText: /\d+ jobs? goe?s? before it|Next in the queue/ }).waitFor();
  await page.locator("#job-standing").filter({ hasText: /done in about/ }).waitFor();
  assert.equal(await status(page), "pending");
  await screenshot(page, "queued");
  const last = jobOf(page);
  assert.notEqual(last, first);
  await cancelled(page);
  for (const id of [first, ...ids]) await fetch(`${platform.gateway}/v1/jobs/${id}`, { method: "DELETE" });
  await until(async () => !(await (await fetch(`${platform.gateway}/v1/jobs?limit=100`)).json()).jobs.some(({ status }) => ["pending", "processing"].includes(status)));
});

for (const transport of ["nats", "sse"]) {
  test(`a reload in the middle goes on, over ${transport}`, async () => {
    const page = await visit({ transport });
    await fillIn(page, { ...MIDDLING, prompt: "a blue ring on a yellow background" });
    await develop(page);
    await previewed(page);
    const job = jobOf(page);
    await page.reload();
    assert.equal(jobOf(page), job);
    await previewed(page);
    assert.equal(await status(page), "processing");
    assert.equal(await page.locator("#job-prompt").innerText(), "a blue ring on a yellow background");
    assert.equal(await page.getByLabel("Prompt", { exact: true }).inputValue(), "a blue ring on a yellow background");
    await becomes(page, "completed");
    await fixed(page);
    assert.equal((await recorded(job)).status, "completed");
  });
}

test("whoever comes without a job's name sees the one that runs", async () => {
  const page = await visit();
  await fillIn(page, SLOW);
  await develop(page);
  await previewed(page);
  await page.goto("about:blank");
  await page.goto(platform.url);
  await page.waitForURL((url) => jobIn(url) !== undefined);
  await previewed(page);
  assert.equal(await status(page), "processing");
  await cancelled(page);
});

test("a job of OpenAI's interface that is cancelled through Replicate's is shown as it is", async () => {
  const asked = fetch(`${platform.gateway}/openai/v1/images/generations`, {
    method: "POST",
    headers: { "content-type": "application/json", "idempotency-key": "console-shared" },
    body: JSON.stringify({ prompt: PROMPT, n: 8, num_inference_steps: 100 }),
  });
  while ((await recorded("console-shared")).status !== "processing") await new Promise((resolve) => setTimeout(resolve, 50));
  const page = await visit({ path: "/#/jobs/console-shared" });
  await becomes(page, "processing");
  await fetch(`${platform.gateway}/replicate/v1/predictions/console-shared/cancel`, { method: "POST" });
  await becomes(page, "cancelled");
  assert.equal((await asked).status, 409);
});

test("a running job is cancelled, and one's focus is not lost with the button", async () => {
  const page = await visit();
  await fillIn(page, SLOW);
  await develop(page);
  await previewed(page);
  await cancelled(page);
  assert.equal((await recorded(jobOf(page))).status, "cancelled");
  assert.notEqual(await page.evaluate(() => document.activeElement?.tagName), "BODY");
  await page.locator("#said").filter({ hasText: "Cancelled: a red star" }).waitFor();
});

test("a running job is stopped, and what is there is kept", async () => {
  const page = await visit();
  await fillIn(page, SLOW);
  await develop(page);
  await previewed(page);
  await page.getByRole("button", { name: "Stop and keep" }).click();
  await becomes(page, "cancelled");
  await fixed(page);
  // Of those that no step was made of there is nothing.
  assert.ok((await recorded(jobOf(page))).images.length >= 1);
});

test("what is wrong with a request is said at its fields, and the first of them is gone to", async () => {
  const page = await visit();
  await fillIn(page, { prompt: "", width: 13, steps: 1000, seed: "seven" });
  await press(page);
  const prompt = page.getByLabel("Prompt", { exact: true });
  await page.locator("#prompt-error").waitFor();
  for (const [label, error, text] of [
    ["Prompt", "#prompt-error", "allowed: 1 to 2000 characters"],
    ["Width", "#width-error", "allowed: multiples of 32 from 64 to 512"],
    ["Steps", "#num_inference_steps-error", "allowed: 1 to 100"],
    ["Seed", "#seed-error", "allowed: "],
  ]) {
    const field = page.getByLabel(label, { exact: true });
    assert.ok((await page.locator(error).innerText()).includes(text), `${label}: ${await page.locator(error).innerText()}`);
    assert.equal(await field.getAttribute("aria-invalid"), "true", label);
    assert.ok((await field.getAttribute("aria-describedby")).includes(error.slice(1)), label);
  }
  assert.ok(await prompt.evaluate((element) => element === document.activeElement));
  assert.equal(await page.locator("#request [aria-invalid]").count(), 4);
  await screenshot(page, "violations");

  await fillIn(page, { ...QUICK, seed: 5 });
  await develop(page);
  await becomes(page, "completed");
  assert.equal(await page.locator("#request [aria-invalid]").count(), 0);
  assert.ok(await page.locator("#prompt-error").isHidden());
});

test("a job is submitted, looked at and varied by the keyboard alone", async () => {
  const page = await visit();
  await fillIn(page, QUICK);
  await page.evaluate(() => document.activeElement?.blur());
  const focusOn = async (id) => {
    for (let presses = 0; presses < 60; presses += 1) {
      await page.keyboard.press("Tab");
      if (await page.evaluate((wanted) => document.activeElement?.id === wanted, id)) return;
    }
    assert.fail(`#${id} cannot be reached by Tab`);
  };
  await focusOn("prompt");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("a green square on a white background");
  await focusOn("submit");
  await jobOfDoing(page, () => page.keyboard.press("Enter"));
  await becomes(page, "completed");
  await focusOn("do-vary");
  await jobOfDoing(page, () => page.keyboard.press("Enter"));
  await becomes(page, "completed");
  assert.equal(await page.locator("#job-prompt").innerText(), "a green square on a white background");
  await page.locator("#prompt").focus();
  await jobOfDoing(page, () => page.keyboard.press("Control+Enter"));
  await becomes(page, "completed");
});

test("a picture is made again with its seed, and varied with another", async () => {
  const page = await visit({ permissions: ["clipboard-read", "clipboard-write"] });
  await fillIn(page, { ...QUICK, prompt: "a pink heart on a black background" });
  await develop(page);
  await becomes(page, "completed");
  const first = jobOf(page);
  await page.getByRole("button", { name: "Copy parameters" }).click();
  await page.getByRole("button", { name: "Copied" }).waitFor();
  const copied = JSON.parse(await page.evaluate(() => navigator.clipboard.readText()));
  const [image] = (await recorded(first)).images;
  assert.equal(copied.seed, image.seed);
  assert.equal(copied.prompt, "a pink heart on a black background");

  const second = await jobOfDoing(page, () => page.getByRole("button", { name: "Same seed again" }).click());
  await becomes(page, "completed");
  assert.equal((await recorded(second)).images[0].sha256, image.sha256);

  await jobOfDoing(page, () => page.getByRole("button", { name: "Vary" }).click());
  await becomes(page, "completed");
  assert.notEqual((await recorded(jobOf(page))).images[0].seed, image.seed);

  await page.getByRole("link", { name: "a pink heart on a black background, completed" }).last().click();
  await page.waitForURL((url) => url.hash.includes(first));
  await page.getByRole("button", { name: "Use in form" }).click();
  assert.equal(await page.getByLabel("Seed").inputValue(), String(image.seed));
});

test("jobs that others make appear, and what another browser asked for is known", async () => {
  const page = await visit();
  await fillIn(page, { ...QUICK, prompt: "a purple ring on a yellow background" });
  await develop(page);
  await becomes(page, "completed");
  const job = jobOf(page);
  await visitor.context.close();
  const other = await visit({ path: `/#/jobs/${job}` });
  await becomes(other, "completed");
  assert.equal(await other.locator("#job-prompt").innerText(), "a purple ring on a yellow background");
  const body = JSON.stringify({ prompt: PROMPT, width: 128, height: 128, num_inference_steps: 5, id: "from-elsewhere" });
  await fetch(`${platform.gateway}/v1/jobs`, { method: "POST", headers: { "content-type": "application/json" }, body });
  await other.locator('#sheet a[href^="#/jobs/from-elsewhere"]').click();
  await becomes(other, "completed");
  assert.ok(await other.getByRole("button", { name: "Vary" }).isHidden());
});

test("a job that there is not is said to be none", async () => {
  const page = await visit({ path: "/#/jobs/nowhere" });
  await page.getByText("There is no such job.").waitFor();
});

test("a key is asked for where one is needed, and goes with pictures and events too", async () => {
  const guarded = await startGuardedGateway(platform, "acme");
  try {
    visitor = await newVisitor(browser);
    const { page } = visitor;
    await page.goto(guarded.url);
    const dialog = page.getByRole("dialog", { name: "API key" });
    await dialog.waitFor();
    await dialog.getByLabel("Key", { exact: true }).fill("dk_nobody");
    await dialog.getByRole("button", { name: "Use key" }).click();
    await dialog.getByText("nobody has this API key").waitFor();
    await dialog.getByLabel("Key", { exact: true }).fill(guarded.key);
    await page.keyboard.press("Enter");
    await dialog.waitFor({ state: "hidden" });
    await page.locator("#model option").first().waitFor({ state: "attached" });
    await page.getByText("Live by server-sent events").waitFor();
    await fillIn(page, { width: 128, height: 128, steps: 40 });
    await develop(page);
    await previewed(page);
    await becomes(page, "completed");
    await fixed(page);
    assert.ok(await page.locator("#trouble").isHidden());
    // The tenant that needs no key elsewhere has not seen it.
    assert.equal((await recorded(jobOf(page))).code, "unknown_job");
  } finally {
    await guarded.stop();
  }
});

test("a gateway that is away is said, and come back to", async () => {
  const page = await visit({ transport: "sse" });
  await page.route("**/v1/**", (route) => route.abort());
  await page.getByText("The gateway does not answer").waitFor();
  await page.unroute("**/v1/**");
  await page.locator("#trouble").waitFor({ state: "hidden" });
});

const FLEET = {
  models: [
    {
      name: "shapes",
      pending: 3,
      workers: [
        { worker: "generate-1", state: "ready", pools: ["any"], jobs_held: 2, images_stepping: 3, images_in_batch_max: 8, image_steps_per_second: 41.5, since: "2026-01-01T00:00:00Z" },
        { worker: "generate-2", state: "draining", pools: ["any", "ondemand"], jobs_held: 0, images_stepping: 0, images_in_batch_max: 8, since: "2026-01-01T00:00:00Z" },
      ],
    },
  ],
};

describe("the fleet", () => {
  test("its queue, batches and pace are drawn, and its workers listed", async () => {
    const page = await visit();
    let looks = 0;
    await page.route("**/v1/fleet", (route) => {
      looks += 1;
      return route.fulfill({ json: FLEET });
    });
    await page.getByRole("link", { name: "Fleet" }).click();
    await page.getByRole("img", { name: "Queue over the last five minutes: now 3, at most 3" }).waitFor();
    await page.getByRole("img", { name: "Batch over the last five minutes: now 3, at most 3" }).waitFor();
    await page.getByRole("img", { name: /^Pace over the last five minutes: now 42,/ }).waitFor();
    assert.ok((await page.getByRole("row", { name: /generate-1/ }).innerText()).includes("41.5"));
    assert.ok((await page.getByRole("row", { name: /generate-2/ }).innerText()).includes("draining"));
    await until(async () => looks >= 3);
    await screenshot(page, "fleet");
    await page.getByRole("link", { name: "Pictures" }).click();
    await page.locator("#pictures").waitFor();
    const then = looks;
    // The list of models is asked for every eight seconds: by then the fleet would have been looked at four times.
    await page.waitForResponse("**/v1/models");
    assert.equal(looks, then, "looks at the fleet while its view is closed");
  });

  test("a fleet that is scaled to zero is said to be", async () => {
    const page = await visit();
    await page.route("**/v1/fleet", (route) => route.fulfill({ json: { models: [{ name: "shapes", pending: 0, workers: [] }] } }));
    await page.getByRole("link", { name: "Fleet" }).click();
    await page.getByText("scaled to zero. The next request starts one").waitFor();
  });

  test("what this gateway tells of its fleet is shown", async () => {
    const page = await visit({ path: "/#/fleet" });
    await page.getByRole("row", { name: /generate-/ }).waitFor();
  });
});

async function assertAccessible(page, where) {
  await still(page);
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  const found = violations.map(({ id, help, nodes }) => `${id}: ${help}\n${nodes.map(({ html, failureSummary }) => `  ${html}\n  ${failureSummary}`).join("\n")}`);
  assert.deepEqual(found, [], where);
}

for (const colorScheme of ["dark", "light"]) {
  test(`accessibility checks find nothing, in ${colorScheme}`, async () => {
    const page = await visit({ colorScheme });
    await fillIn(page, SLOW);
    await develop(page);
    await previewed(page);
    await assertAccessible(page, "a picture that forms");
    await screenshot(page, `forming-${colorScheme}`);
    await cancelled(page);
    await assertAccessible(page, "a cancelled job");
    await fillIn(page, { prompt: "", width: 13, images: 2 });
    await press(page);
    await page.locator("#prompt-error").waitFor();
    await page.locator("#more summary").click();
    await assertAccessible(page, "broken rules");
    await fillIn(page, { ...QUICK, images: 2 });
    await develop(page);
    await becomes(page, "completed");
    await fixed(page);
    await page.locator("#job-timings summary").click();
    await assertAccessible(page, "a completed job");
    await screenshot(page, `completed-${colorScheme}`);
    await page.route("**/v1/fleet", (route) => route.fulfill({ json: FLEET }));
    await page.getByRole("link", { name: "Fleet" }).click();
    await page.getByRole("row", { name: /generate-1/ }).waitFor();
    await assertAccessible(page, "the fleet");
    await screenshot(page, `fleet-${colorScheme}`);
  });
}

test("a phone shows all of it without scrolling sideways", async () => {
  const page = await visit({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  const fits = async (where) => {
    const [needed, there] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    assert.ok(needed <= there && there === 360, `${where} needs ${needed} of ${there} pixels`);
  };
  await fits("the form");
  const long = "a red star on a white background".replaceAll(" ", "-").repeat(20);
  await fillIn(page, { ...SLOW, prompt: long });
  await develop(page);
  await previewed(page);
  await fits("a picture that forms");
  const inSight = await page.locator("#frame").evaluate((frame) => frame.getBoundingClientRect().top < window.innerHeight);
  assert.ok(inSight, "the picture that forms is out of sight");
  await screenshot(page, "phone-forming");
  await cancelled(page);
  await fillIn(page, { prompt: "", width: 13 });
  await press(page);
  await page.locator("#prompt-error").waitFor();
  await fits("broken rules");
  await page.route("**/v1/fleet", (route) => route.fulfill({ json: FLEET }));
  await page.getByRole("link", { name: "Fleet" }).click();
  await page.getByRole("row", { name: /generate-1/ }).waitFor();
  await fits("the fleet");
  await screenshot(page, "phone-fleet", { fullPage: true });
});
