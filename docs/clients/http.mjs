// Jobs over HTTP with nothing but fetch, in Node 20 or newer, Deno, Bun or a browser: one that is followed to its image, one that
// is cancelled while it runs.
//
//   node http.mjs [IMAGE.png]
import { writeFile } from "node:fs/promises";

const { DARKROOM_URL = "http://127.0.0.1:8080", DARKROOM_API_KEY } = process.env;
const [path = "image.png"] = process.argv.slice(2);

async function ask(target, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  // The gateway of local/up wants no key.
  if (DARKROOM_API_KEY) headers.Authorization = `Bearer ${DARKROOM_API_KEY}`;
  const response = await fetch(new URL(target, DARKROOM_URL), { ...options, headers });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response;
}

// A request that is sent again with its key is the same job, so it may be tried again after whatever went wrong.
async function submit(request, key = crypto.randomUUID()) {
  const options = { method: "POST", headers: { "Idempotency-Key": key }, body: JSON.stringify(request) };
  return (await ask("/v1/jobs", options)).json();
}

// The job's events, up to the one that ends it. A stream that breaks before goes on after the event that was seen last.
async function* follow(job, lastEventId = "") {
  for (;;) {
    const response = await ask(job.links.events, { headers: { "Last-Event-ID": lastEventId } });
    let text = "";
    for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
      const blocks = (text + part).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").find((line) => line.startsWith("data: "));
        if (!data) continue;
        const event = JSON.parse(data.slice("data: ".length));
        lastEventId = event.id;
        const kind = event.type.replace("darkroom.job.", "");
        yield { kind, ...event.data };
        if (["completed", "failed", "cancelled"].includes(kind)) return;
      }
    }
  }
}

const circle = await submit({ prompt: "a red circle on a blue background", seed: 7 });
for await (const { kind, step, steps, code, message } of follow(circle)) {
  console.log(kind === "progress" ? `progress: step ${step} of ${steps}` : kind);
  if (kind === "failed") throw new Error(`${code}: ${message}`);
}
const image = await ask(`/v1/jobs/${circle.id}/images/0`);
await writeFile(path, Buffer.from(await image.arrayBuffer()));
console.log(path, image.headers.get("Content-Type"));

const star = await submit({ prompt: "a green star", num_inference_steps: 100, num_images: 8 });
for await (const { kind } of follow(star)) {
  console.log(kind);
  if (kind === "started") await ask(star.links.self, { method: "DELETE" });
  if (kind === "completed") throw new Error("it ended before it was cancelled");
}
