// Checks Kubernetes objects against the schemas of their kinds: those of Kubernetes, KEDA, Karpenter and cert-manager.
//
//   node validate.mjs FOLDER-WITH-node_modules < OBJECTS.json
//
// The input is a list of {"where": …, "object": {…}}. It prints one line for each fault, then how many objects of which kind there
// were, and exits with 1 if there was a fault.
//
// The schemas are functions that look at what they know and pass over the rest, as a server that keeps unknown fields would. Ours
// must have no field that nobody knows, so each object is given to them behind a proxy that remembers which fields were looked at.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const modules = path.resolve(process.argv[2], 'node_modules');
const packages = ['kubernetes-models', '@kubernetes-models/keda', '@kubernetes-models/karpenter', '@kubernetes-models/cert-manager'];

// Where a package keeps the class of a kind: core/v1 is v1, else group/version.
function classFile(apiVersion, kind) {
  for (const name of packages) {
    // Groups of Kubernetes that have no dot are folders of that name.
    const file = path.join(modules, name, apiVersion, `${kind}.js`);
    if (fs.existsSync(file)) return file;
  }
  return null;
}

// The validator that the file of a class brings along.
async function validator(apiVersion, kind) {
  const file = classFile(apiVersion, kind);
  if (file === null) return null;
  const imported = /import\{validate\}from"([^"]+)"/.exec(fs.readFileSync(file, 'utf8'));
  if (imported === null) throw new Error(`${file} names no schema`);
  const { validate } = await import(pathToFileURL(path.resolve(path.dirname(file), imported[1])));
  return validate;
}

// A copy that remembers in `nodes` which fields of each of its objects and lists were looked at.
function watched(value, at, nodes) {
  if (value === null || typeof value !== 'object') return value;
  const node = { at, keys: Object.keys(value), seen: new Set() };
  nodes.push(node);
  const copy = Array.isArray(value) ? [] : {};
  for (const key of node.keys) copy[key] = watched(value[key], `${at}/${key}`, nodes);
  return new Proxy(copy, {
    get(target, key, receiver) {
      if (typeof key === 'string') node.seen.add(key);
      return Reflect.get(target, key, receiver);
    },
  });
}

function faults(validate, object) {
  const nodes = [];
  const found = [];
  if (!validate(watched(object, '', nodes))) {
    for (const error of validate.errors) found.push(`${error.instancePath || '/'}: ${error.keyword} ${JSON.stringify(error.params)}`);
  }
  const unknown = [];
  for (const node of nodes) {
    // What is inside an unknown field was not looked at either.
    if (unknown.some((above) => node.at === above || node.at.startsWith(`${above}/`))) continue;
    for (const key of node.keys) if (!node.seen.has(key)) unknown.push(`${node.at}/${key}`);
  }
  return found.concat(unknown.map((at) => `${at}: no such field`));
}

const input = JSON.parse(fs.readFileSync(0, 'utf8'));
const counts = new Map();
let bad = 0;
for (const { where, object } of input) {
  const { apiVersion, kind, metadata } = object;
  const validate = await validator(apiVersion, kind);
  const found = validate === null ? [`there is no schema of ${apiVersion} ${kind}`] : faults(validate, object);
  for (const fault of found) {
    console.log(`${where}: ${kind} ${metadata?.name}: ${fault}`);
    bad += 1;
  }
  const name = `${apiVersion} ${kind}`;
  counts.set(name, (counts.get(name) ?? 0) + 1);
}
for (const [name, count] of [...counts].sort()) console.log(`  ${count} ${name}`);
process.exit(bad === 0 ? 0 : 1);
