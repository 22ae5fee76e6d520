// What the scripts share that load bundles with other people's JavaScript libraries; consumers.py has the same for Python.

import { appendFileSync, readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

// ONNX Runtime reads it when it is loaded.
process.env.ORT_DISABLE_TELEMETRY ??= "1";

const GOLDENS = resolve(dirname(fileURLToPath(import.meta.url)), "../fixtures/goldens");
// In f16 absolute, or a share of the largest number.
const TOLERANCE = { f32: 1e-4, f16: 2e-2 };
const SHARE = { f32: 0, f16: 5e-3 };

/** The fault by each of the names: the part of the error that shows it, and what the library does wrong. */
export const known = (names, ...fault) => Object.fromEntries(names.split(" ").map((name) => [name, fault]));

/** A tensor of the library's class `Tensor`, of numbers in a buffer. */
export const tensor = (Tensor, dtype, data, dims) =>
  dtype === "I64" ? new Tensor("int64", new BigInt64Array(data), dims) : new Tensor("float32", new Float32Array(data), dims);

/** The tensors of a .safetensors file by name, of the library's class `Tensor`. */
function readTensors(path, Tensor) {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    tensors[name] = tensor(Tensor, dtype, Uint8Array.from(bytes.subarray(8 + length + from, 8 + length + to)).buffer, shape);
  }
  return tensors;
}

/** A bundle of a golden in a folder named GOLDEN-SUFFIX, and what transformers or diffusers recorded for that. */
class Bundle {
  constructor(folder, Tensor) {
    this.folder = resolve(folder);
    [, this.golden] = /^(.*)-.*?$/.exec(basename(this.folder));
    const read = (name) => JSON.parse(readFileSync(resolve(GOLDENS, this.golden, name), "utf8"));
    this.config = read("config.json");
    this.family = this.config.model_type ?? this.config._class_name;
    const tensors = readTensors(resolve(GOLDENS, this.golden, "golden.safetensors"), Tensor);
    const part = (prefix) =>
      Object.fromEntries(Object.entries(tensors).filter(([name]) => name.startsWith(prefix)).map(([name, t]) => [name.slice(prefix.length), t]));
    this.inputs = part("input.");
    this.recorded = part("output.");
    this.isDecoder = "left_padded_logits" in this.recorded;
    const manifest = readFileSync(resolve(this.folder, "dlc.yaml"), "utf8");
    this.profile = /^profile: (.*)$/m.exec(manifest)[1];
    this.dtype = /^ {2}dtype: (.*)$/m.exec(manifest)[1];
  }

  /** Throws where `found` differs from the recorded `output`, at the positions that the mask keeps if there is one. */
  compare(output, found, mask) {
    const expected = this.recorded[output];
    // A discriminator's logits have a last axis of one entry (docs/models.md).
    const dims = String(found.dims) === String([...expected.dims, 1]) ? found.dims.slice(0, -1) : found.dims;
    if (String(dims) !== String(expected.dims)) throw Error(`${output}: the shape is ${found.dims}, not ${expected.dims}`);
    const [a, b] = [found.type === "float16" ? found.to("float32").data : found.data, expected.data];
    const width = mask ? b.length / mask.data.length : 1;
    const largest = b.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0);
    const tolerance = Math.max(TOLERANCE[this.dtype], SHARE[this.dtype] * largest);
    let worst = 0;
    for (let i = 0; i < b.length; i++) {
      if (mask && !mask.data[Math.floor(i / width)]) continue;
      const difference = Math.abs(a[i] - b[i]);
      if (!(difference <= worst)) worst = difference; // NaN stays
    }
    if (!(worst <= tolerance)) throw Error(`${output}: differs by ${worst}, more than ${tolerance}`);
  }

  /** Compares every output of the plain run, where the mask isn't 0. */
  comparePlain(found) {
    const mask = this.inputs.attention_mask;
    for (const [output, { dims }] of Object.entries(this.recorded)) {
      if (output.includes("left_padded") || output.includes("after")) continue;
      this.compare(output, found[output], String(dims.slice(0, 2)) === String(mask?.dims) ? mask : undefined);
    }
  }

  /** The inputs of the plain run. */
  get plain() {
    return Object.fromEntries(Object.entries(this.inputs).filter(([name]) => !name.includes("left_padded")));
  }
}

/** The arguments of a script: the folder of the library, bundles, and where results go. Ends the script on bad usage. */
export function readArguments(script) {
  const [modules, ...bundles] = process.argv.slice(2);
  const at = bundles.indexOf("--results");
  const results = at < 0 ? undefined : bundles.splice(at, 2)[1];
  if (!modules || !bundles.length || (at >= 0 && !results)) {
    console.error(`usage: ${script} MODULES BUNDLE... [--results FILE]`);
    process.exit(2);
  }
  return { modules, bundles, results };
}

/** The version of an installed package. */
export const versionOf = (modules, name) =>
  JSON.parse(readFileSync(resolve(modules, "node_modules", name, "package.json"), "utf8")).version;

/**
 * Prints a line for each bundle and adds one to the results; the exit status, 0 if all is as it was known to be. `load`
 * throws where a bundle fails. `faults` are the library's own, by golden.
 */
export async function check({ consumer, version, faults, Tensor, load }, { bundles, results }) {
  let good = true;
  for (const folder of bundles) {
    const bundle = new Bundle(folder, Tensor);
    const { golden, family, profile, dtype } = bundle;
    const [shown, reason] = faults[basename(bundle.folder)] ?? faults[golden] ?? [];
    let error;
    try {
      await load(bundle);
    } catch (thrown) {
      error = String(thrown?.message ?? thrown).replace(/\s+/g, " ");
    }
    const expected = shown === undefined ? error === undefined : !!error?.includes(shown);
    good &&= expected;
    const mark = !expected ? "FAILED " : error === undefined ? "ok     " : "known  ";
    console.log(`${mark} ${consumer} ${version}: ${golden}, ${profile}, ${dtype}: ${error?.slice(0, 300) ?? "equal"}`);
    const fault = error === undefined ? null : (reason ?? error.slice(0, 300));
    if (results) appendFileSync(results, JSON.stringify({ consumer, version, family, golden, profile, dtype, fault }) + "\n");
  }
  return good ? 0 : 1;
}
