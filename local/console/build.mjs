// Builds the console into dist/, which is committed: whoever builds the gateway needs no Node.
//
//   node build.mjs             writes dist/
//   node build.mjs --check     writes nothing, and fails when dist/ is not what the sources build
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const NOTICE = "/* Darkroom's console, with @nats-io/nats-core (Apache-2.0) in it. Built from local/console/src. */";

async function built() {
  const { outputFiles } = await build({
    absWorkingDir: here("."),
    entryPoints: { console: "src/main.ts" },
    outdir: "dist",
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    legalComments: "none",
    charset: "utf8",
    banner: { js: NOTICE },
    write: false,
  });
  const style = await build({
    absWorkingDir: here("."),
    entryPoints: { console: "src/console.css" },
    outdir: "dist",
    minify: true,
    charset: "utf8",
    target: "es2022",
    write: false,
  });
  const files = new Map();
  for (const { path, contents } of [...outputFiles, ...style.outputFiles]) {
    files.set(path.slice(path.lastIndexOf("/") + 1), Buffer.from(contents));
  }
  for (const name of ["index.html", "icon.svg"]) files.set(name, await readFile(here(`src/${name}`)));
  return files;
}

const files = await built();
if (process.argv.includes("--check")) {
  const there = await readdir(here("dist")).catch(() => []);
  const stale = there.filter((name) => !files.has(name));
  for (const [name, contents] of files) {
    const committed = await readFile(here(`dist/${name}`)).catch(() => undefined);
    if (!committed?.equals(contents)) stale.push(name);
  }
  if (stale.length > 0) {
    console.error(`dist/ is not what src/ builds: ${stale.join(", ")}; run \`npm run build\` in local/console and commit it`);
    process.exit(1);
  }
} else {
  await mkdir(here("dist"), { recursive: true });
  for (const [name, contents] of files) await writeFile(here(`dist/${name}`), contents);
}
