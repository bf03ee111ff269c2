// A platform of its own for the tests, and a browser in front of it.
//
//   DARKROOM_PROGRAMS       directory of darkroom, darkroom-gateway, darkroom-generate, darkroom-deadletter
//   DARKROOM_NATS_SERVER    the nats-server
//   DARKROOM_MODEL          the model to serve; local/models/shapes by default
//   DARKROOM_CHROMIUM       the browser; /usr/bin/chromium by default
//   DARKROOM_CONSOLE_OWN    when 1, serve.mjs stands in front of the gateway with this directory's dist/
//   DARKROOM_SCREENSHOTS    where pictures of the page are left
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { serve } from "../serve.mjs";

const PROGRAMS = needed("DARKROOM_PROGRAMS");
const MODEL = process.env.DARKROOM_MODEL || fileURLToPath(new URL("../../models/shapes", import.meta.url));
const READY_MS = 60_000;
/** How long a page may take to show what happens on the platform. */
export const PATIENCE_MS = 120_000;
/** Workers that are told to end save what they run first. */
const END_MS = 90_000;

// Without these, whoever is stopped would leave its platform running.
process.once("SIGINT", () => process.exit(130));
process.once("SIGTERM", () => process.exit(143));

function needed(name) {
  const value = process.env[name];
  if (value === undefined || value === "") throw new Error(`${name} is not set; local/console/check sets it`);
  return value;
}

/** Two ports after one another that nobody has: NATS and its WebSocket. */
async function freePair() {
  for (;;) {
    const first = await listening(0);
    const port = first.address().port;
    const second = port < 65535 ? await listening(port + 1).catch(() => undefined) : undefined;
    await closed(first);
    if (second === undefined) continue;
    await closed(second);
    return port;
  }
}

async function freePort() {
  const server = await listening(0);
  const { port } = server.address();
  await closed(server);
  return port;
}

async function listening(port) {
  const server = createServer().listen(port, "127.0.0.1");
  await once(server, "listening");
  return server;
}

async function closed(server) {
  server.close();
  await once(server, "close");
}

async function ended(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const end = once(child, "exit");
  child.kill("SIGTERM");
  let late = false;
  const timer = setTimeout(() => (late = child.kill("SIGKILL")), END_MS);
  await end;
  clearTimeout(timer);
  if (late) throw new Error(`${child.spawnfile} did not end in ${END_MS} ms, and what it started may still run`);
}

/** Starts a program and ends it with the test process, however that ends. */
function start(program, args, stdio) {
  const child = spawn(join(PROGRAMS, program), args, { stdio });
  const stop = () => child.kill("SIGTERM");
  process.once("exit", stop);
  child.once("exit", () => process.off("exit", stop));
  return child;
}

/** `darkroom up` on free ports, with the model that comes along. */
export async function startPlatform() {
  const data = await mkdtemp(join(tmpdir(), "darkroom-console-"));
  const natsPort = await freePair();
  const args = [
    ["up", "--nats-server", needed("DARKROOM_NATS_SERVER"), "--model", MODEL, "--data", data],
    ["--nats-port", String(natsPort), "--http-port", String(await freePort()), "--idle", "10m"],
  ].flat();
  const up = start("darkroom", args, ["ignore", "pipe", "pipe"]);
  let log = "";
  up.stderr.on("data", (bytes) => (log = (log + bytes).slice(-20_000)));
  const stop = async () => {
    await ended(up);
    await rm(data, { recursive: true, force: true });
  };
  const ready = (async () => {
    for await (const line of createInterface({ input: up.stdout })) return JSON.parse(line);
    throw new Error(`darkroom up ended before it was ready:\n${log}`);
  })();
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`darkroom up was not ready:\n${log}`)), READY_MS).unref());
  try {
    const { gateway, nats, websocket } = await Promise.race([ready, late]);
    const front = await standInFront(gateway, websocket);
    return {
      gateway,
      nats,
      websocket,
      url: front.url,
      data,
      async stop() {
        await front.close();
        await stop();
      },
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** What a browser is sent to: the gateway, or what stands in front of it. */
async function standInFront(gateway, nats) {
  if (process.env.DARKROOM_CONSOLE_OWN === "1") return serve({ gateway, nats });
  return { url: gateway, close: async () => {} };
}

/** A second gateway on the same NATS that lets in nobody without a key, and a key. */
export async function startGuardedGateway(platform, tenant) {
  const port = await freePort();
  const gateway = `http://127.0.0.1:${port}`;
  const args = ["--nats", platform.nats, "--http-listen", `127.0.0.1:${port}`, "--store", `file://${platform.data}/objects`];
  const child = start("darkroom-gateway", args, ["ignore", "ignore", "ignore"]);
  const stop = () => ended(child);
  try {
    const key = await output("darkroom", ["--nats", platform.nats, "--json", "keys", "add", tenant]);
    await until(async () => (await fetch(`${gateway}/health/live`).catch(() => undefined))?.ok);
    const front = await standInFront(gateway, undefined);
    return { url: front.url, gateway, key: JSON.parse(key).key, stop: async () => (await front.close(), await stop()) };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function output(program, args) {
  const child = start(program, args, ["ignore", "pipe", "inherit"]);
  let text = "";
  child.stdout.on("data", (bytes) => (text += bytes));
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`${program} ${args.join(" ")} ended with ${code}`);
  return text;
}

/** Waits until something is so. */
export async function until(condition, milliseconds = PATIENCE_MS) {
  const end = Date.now() + milliseconds;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`it did not become so in ${milliseconds} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export async function startBrowser() {
  return chromium.launch({
    executablePath: process.env.DARKROOM_CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** A browser that has never been here. Whatever goes wrong in its pages is in `faults`. */
export async function newVisitor(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const faults = [];
  context.on("weberror", (error) => faults.push(String(error.error())));
  context.on("console", (message) => {
    // Answers that are no success are also told there, and are what some tests want.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) faults.push(message.text());
  });
  const page = await context.newPage();
  return { context, page, faults };
}

export async function screenshot(page, name, options = {}) {
  const directory = process.env.DARKROOM_SCREENSHOTS;
  if (!directory) return;
  await mkdir(directory, { recursive: true });
  await page.screenshot({ path: join(directory, `${name}.png`), ...options });
}
