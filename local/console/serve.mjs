// Serves dist/ in front of a running gateway, so that the console can be worked on without building the gateway.
//
//   node serve.mjs [--gateway http://127.0.0.1:8080] [--port 8081] [--nats ws://127.0.0.1:4223]
//
// Everything but the console's own files goes to the gateway, event streams included. Run `npm run build` after a change
// and reload.
import { createServer, request } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const DIST = new URL("./dist/", import.meta.url);
const MEDIA_TYPES = {
  html: "text/html; charset=utf-8",
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  svg: "image/svg+xml",
};
/** As the gateway sends it. */
export const CONTENT_SECURITY_POLICY =
  "default-src 'self'; img-src 'self' data: blob: http: https:; connect-src 'self' ws: wss: http: https:; " +
  "style-src 'self'; script-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/**
 * Listens on loopback; `port` 0 takes a free one.
 * @param {{ gateway: string, port?: number, nats?: string | undefined, tenant?: string }} options
 */
export async function serve({ gateway, port = 0, nats, tenant = "default" }) {
  const server = createServer(async (incoming, outgoing) => {
    const { pathname } = new URL(incoming.url ?? "/", "http://localhost");
    if (pathname === "/console/config.json") {
      outgoing.setHeader("content-type", "application/json");
      outgoing.end(JSON.stringify({ nats: nats === undefined ? null : { url: nats, tenant } }));
      return;
    }
    const name = pathname === "/" ? "index.html" : /^\/console\/([a-z]+\.[a-z]+)$/.exec(pathname)?.[1];
    if (name === undefined) return forward(gateway, incoming, outgoing);
    const contents = await readFile(new URL(name, DIST)).catch(() => undefined);
    if (contents === undefined) {
      outgoing.writeHead(404).end();
      return;
    }
    outgoing.setHeader("content-type", MEDIA_TYPES[name.slice(name.lastIndexOf(".") + 1)] ?? "application/octet-stream");
    outgoing.setHeader("content-security-policy", CONTENT_SECURITY_POLICY);
    outgoing.end(contents);
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject).listen(port, "127.0.0.1", () => resolve(undefined));
  });
  const { port: bound } = /** @type {import("node:net").AddressInfo} */ (server.address());
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${bound}`, close };
}

function forward(gateway, incoming, outgoing) {
  const { hostname, port } = new URL(gateway);
  const { method, url: path, headers } = incoming;
  const there = request({ hostname, port, method, path, headers }, (answer) => {
    outgoing.writeHead(answer.statusCode ?? 502, answer.headers);
    answer.pipe(outgoing);
  });
  there.on("error", () => (outgoing.headersSent ? outgoing.destroy() : outgoing.writeHead(502).end()));
  outgoing.on("close", () => there.destroy());
  incoming.pipe(there);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      gateway: { type: "string", default: "http://127.0.0.1:8080" },
      port: { type: "string", default: "8081" },
      nats: { type: "string" },
    },
  });
  const { url } = await serve({ gateway: values.gateway, port: Number(values.port), nats: values.nats });
  console.log(url);
}
