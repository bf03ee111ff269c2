// Jobs over NATS: one that is followed to its image, one that is cancelled while it runs.
//
//   npm install @nats-io/transport-node@3.4.0 @nats-io/jetstream@3.4.0
//   node nats.mjs [IMAGE.png]
import { randomUUID } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { jetstream } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const { NATS_URL = "nats://127.0.0.1:4222", DARKROOM_TENANT: tenant = "default" } = process.env;
const [path = "image.png"] = process.argv.slice(2);
const client = await connect({ servers: NATS_URL.split(",") });

// It is safe once the stream has confirmed it. Sent again with its id, it is the same job.
async function submit(job, request) {
  const subject = `darkroom.req.shapes.normal.any.${tenant}`;
  const { duplicate } = await jetstream(client).publish(subject, JSON.stringify(request), { msgID: job });
  console.log(`job ${job}: ${duplicate ? "known already" : "submitted"}`);
}

// Both subscribe at once, so what is submitted after them is seen from its beginning.
const subscribe = (job) => client.subscribe(`darkroom.ev.${tenant}.${job}.>`);
const showProgress = (job) =>
  client.subscribe(`darkroom.prog.${tenant}.${job}`, {
    callback: (_, message) => console.log("progress: step", message.json().data.step),
  });

// The events of a subscription, up to the one that ends the job.
async function* follow(subscription) {
  for await (const message of subscription) {
    const { type, data } = message.json();
    const kind = type.replace("darkroom.job.", "");
    yield { kind, data };
    if (["completed", "failed", "cancelled"].includes(kind)) return;
  }
}

const circle = `circle-${randomUUID()}`;
const request = { prompt: "a red circle on a blue background", seed: 7 };
const events = subscribe(circle);
showProgress(circle);
await submit(circle, request);
await submit(circle, request);
for await (const { kind, data } of follow(events)) {
  console.log(kind);
  if (kind === "failed") throw new Error(`${data.code}: ${data.message}`);
  if (kind !== "completed") continue;
  // A link to the store: signed where it can sign, a file where the store is a folder, as in local/up.
  const url = new URL(data.images[0].url);
  const image = url.protocol === "file:" ? await readFile(url) : Buffer.from(await (await fetch(url)).arrayBuffer());
  await writeFile(path, image);
  console.log(path, image.length, "bytes");
}

const star = `star-${randomUUID()}`;
const eventsOfStar = subscribe(star);
await submit(star, { prompt: "a green star", num_inference_steps: 100, num_images: 8 });
for await (const { kind } of follow(eventsOfStar)) {
  console.log(kind);
  if (kind === "completed") throw new Error("it ended before it was cancelled");
  if (kind !== "started") continue;
  const answer = await client.request(`darkroom.api.cancel.${tenant}`, JSON.stringify({ job: star }));
  console.log("asked to cancel:", answer.json().outcome);
}
await client.close();
