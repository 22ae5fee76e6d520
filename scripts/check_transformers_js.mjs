#!/usr/bin/env node
// Checks that transformers.js loads bundles for it as they are and says what transformers said.
//
//   scripts/nodeenv.sh transformers_js        installs transformers.js and prints where
//   node scripts/check_transformers_js.mjs MODULES BUNDLE... [--results FILE]
//
// MODULES is the folder that nodeenv.sh prints. The bundles are those of `dlc compile --deploy transformers.js` of
// goldens in fixtures/goldens, in folders named GOLDEN-DTYPE. No option says which file holds which type: the bundle's
// config.json does. Decoders also generate, and must choose what whole sequences choose.
//
// Exit status: 0 all equal but for what transformers.js is known to do wrong, 1 a difference, 2 bad usage.

import { appendFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

// ONNX Runtime reads it when it is loaded.
process.env.ORT_DISABLE_TELEMETRY ??= "1";

const NAME = "@huggingface/transformers";
const GOLDENS = resolve(dirname(fileURLToPath(import.meta.url)), "../fixtures/goldens");
// In f16 absolute, or a share of the largest number.
const TOLERANCE = { f32: 1e-4, f16: 2e-2 };
const SHARE = { f32: 0, f16: 5e-3 };
const HEADS = {
  ForCausalLM: "AutoModelForCausalLM",
  LMHeadModel: "AutoModelForCausalLM",
  ForMaskedLM: "AutoModelForMaskedLM",
  ForSequenceClassification: "AutoModelForSequenceClassification",
  ForTokenClassification: "AutoModelForTokenClassification",
  Model: "AutoModel",
};
// By family, the part of the error that shows the library's own fault, and what it does wrong.
const FAULTS = {};

const [modules, ...rest] = process.argv.slice(2);
const at = rest.indexOf("--results");
const results = at < 0 ? undefined : rest.splice(at, 2)[1];
if (!modules || !rest.length || (at >= 0 && !results)) {
  console.error("usage: check_transformers_js.mjs MODULES BUNDLE... [--results FILE]");
  process.exit(2);
}
const require = createRequire(resolve(modules, "package.json"));
const version = JSON.parse(readFileSync(resolve(modules, "node_modules", NAME, "package.json"), "utf8")).version;
const library = await import(pathToFileURL(require.resolve(NAME)).href);
library.env.allowRemoteModels = false;

/** The tensors of a .safetensors file, by name. */
function readTensors(path) {
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const data = Uint8Array.from(bytes.subarray(8 + length + from, 8 + length + to)).buffer;
    tensors[name] =
      dtype === "I64"
        ? new library.Tensor("int64", new BigInt64Array(data), shape)
        : new library.Tensor("float32", new Float32Array(data), shape);
  }
  return tensors;
}

/** Throws where `found` differs from `expected` at positions that the mask keeps. */
function compare(found, expected, mask, dtype) {
  if (String(found.dims) !== String(expected.dims)) throw Error(`the shape is ${found.dims}, not ${expected.dims}`);
  const [a, b] = [found.to("float32").data, expected.data];
  const width = mask ? expected.dims.at(-1) : 1;
  const largest = b.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0);
  const tolerance = Math.max(TOLERANCE[dtype], SHARE[dtype] * largest);
  let worst = 0;
  for (let i = 0; i < b.length; i++) {
    if (mask && !mask.data[Math.floor(i / width)]) continue;
    const difference = Math.abs(a[i] - b[i]);
    if (!(difference <= worst)) worst = difference;
  }
  if (!(worst <= tolerance)) throw Error(`differs by ${worst}, more than ${tolerance}`);
}

/** Greedy tokens after a prompt must be those that whole sequences choose. */
async function checkGeneration(model, ids) {
  const prompt = ids.slice([0, 1], [0, 7]);
  const options = { max_new_tokens: 6, min_new_tokens: 6, do_sample: false };
  const text = (await model.generate({ inputs: prompt, attention_mask: library.ones_like(prompt), ...options })).tolist()[0];
  const ends = [model.generation_config?.eos_token_id ?? []].flat();
  for (let length = 7; length < text.length; length++) {
    const whole = new library.Tensor("int64", BigInt64Array.from(text.slice(0, length)), [1, length]);
    const { logits } = await model({ input_ids: whole, attention_mask: library.ones_like(whole) });
    const last = Array.from(logits.to("float32").slice(0, length - 1).data);
    // Tiny goldens keep the ids of large vocabularies.
    for (const end of ends) if (end < last.length) last[end] = -Infinity;
    const best = last.indexOf(Math.max(...last));
    if (Number(text[length]) !== best) throw Error(`generate: token ${length} is ${text[length]}, not ${best}`);
  }
}

async function check(bundle, golden, dtype, config) {
  const tensors = readTensors(resolve(GOLDENS, golden, "golden.safetensors"));
  const inputs = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    if (name.startsWith("input.") && !name.includes("left_padded")) inputs[name.slice(6)] = tensor;
  }
  library.env.localModelPath = dirname(resolve(bundle));
  const head = Object.keys(HEADS).find((head) => config.architectures[0].endsWith(head));
  const model = await library[HEADS[head]].from_pretrained(basename(resolve(bundle)), { device: "cpu" });
  const output = head === "Model" ? "last_hidden_state" : "logits";
  const expected = tensors[`output.${output}`];
  const mask = expected.dims.length === 3 ? inputs.attention_mask : undefined;
  compare((await model(inputs))[output], expected, mask, dtype);
  // In half precision the two may choose otherwise where two tokens are about as likely.
  if (HEADS[head] === "AutoModelForCausalLM" && dtype === "f32") await checkGeneration(model, inputs.input_ids);
  await model.dispose();
}

let good = true;
for (const bundle of rest) {
  const [, golden, dtype] = /^(.*)-(.*?)$/.exec(basename(resolve(bundle)));
  const config = JSON.parse(readFileSync(resolve(GOLDENS, golden, "config.json"), "utf8"));
  const [shown, fault] = FAULTS[config.model_type] ?? [];
  let error;
  try {
    await check(bundle, golden, dtype, config);
  } catch (thrown) {
    error = String(thrown?.message ?? thrown).replace(/\s+/g, " ");
  }
  const expected = shown === undefined ? error === undefined : error?.includes(shown);
  good &&= expected;
  const mark = !expected ? "FAILED " : error === undefined ? "ok     " : "known  ";
  console.log(`${mark} transformers.js ${version}: ${golden}, ${dtype}: ${error?.slice(0, 300) ?? "equal"}`);
  const row = { consumer: "transformers.js", version, family: config.model_type, profile: "portable", dtype };
  if (results) appendFileSync(results, JSON.stringify({ ...row, fault: error === undefined ? null : (fault ?? error.slice(0, 300)) }) + "\n");
}
process.exit(good ? 0 : 1);
