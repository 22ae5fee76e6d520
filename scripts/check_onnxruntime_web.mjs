#!/usr/bin/env node
// Checks that onnxruntime-web loads bundles as they are, on its WebAssembly backend, and computes what was recorded.
//
//   scripts/nodeenv.sh onnxruntime_web        installs onnxruntime-web and prints where
//   node scripts/check_onnxruntime_web.mjs MODULES BUNDLE... [--results FILE]
//
// MODULES is the folder that nodeenv.sh prints. The bundles are of goldens in fixtures/goldens, in folders named
// GOLDEN-PROFILE. Graph and weights go in as bytes, as in a browser. Decoders run on batches padded on the right and on
// the left, then on two tokens after a cache of seven.
//
// Exit status: 0 all equal but for what onnxruntime-web is known to do wrong, 1 a difference, 2 bad usage.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { check, readArguments, versionOf } from "./consumers.mjs";

const NAME = "onnxruntime-web";
const WEIGHTS = "weights.bin";
const FAULTS = {};

const given = readArguments("check_onnxruntime_web.mjs");
const require = createRequire(resolve(given.modules, "package.json"));
const ort = await import(pathToFileURL(require.resolve(NAME)).href);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal"; // what goes wrong is thrown

const int64 = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
const ones = (dims) => int64(Array(dims.reduce((a, b) => a * b, 1)).fill(1), dims);

/** An ONNX file as onnxruntime-web loaded it. */
class Graph {
  constructor(session) {
    this.session = session;
    this.shapes = Object.fromEntries(session.inputMetadata.map(({ name, shape }) => [name, shape]));
  }

  /** The outputs. Leaves out what the graph has no input for. */
  run(feeds) {
    return this.session.run(Object.fromEntries(Object.entries(feeds).filter(([name]) => name in this.shapes)));
  }

  emptyCaches(batch) {
    const caches = Object.entries(this.shapes).filter(([name]) => name.startsWith("past_key_values."));
    return Object.fromEntries(caches.map(([name, [, heads, , width]]) => [name, new ort.Tensor("float32", [], [batch, heads, 0, width])]));
  }

  decode(ids, mask, caches = this.emptyCaches(ids.dims[0])) {
    const [batch, length] = ids.dims;
    const past = mask.dims[1] - length;
    const positions = Array.from({ length: batch * length }, (_, i) => past + (i % length));
    return this.run({ input_ids: ids, attention_mask: mask, position_ids: int64(positions, [batch, length]), ...caches });
  }

  /** The logits of two tokens after a cache of seven. */
  async decodeAfter7(ids) {
    const { logits, ...before } = await this.decode(int64(ids.slice(0, 7), [1, 7]), ones([1, 7]));
    const caches = Object.fromEntries(Object.entries(before).map(([name, cache]) => [name.replace("present", "past_key_values"), cache]));
    return (await this.decode(int64(ids.slice(7, 9), [1, 2]), ones([1, 9]), caches)).logits;
  }
}

async function checkDecoder(bundle, graph) {
  const { input_ids: ids, attention_mask: mask, left_padded_attention_mask: padded, left_padded_position_ids } = bundle.inputs;
  bundle.compare("logits", (await graph.decode(ids, mask)).logits, mask);
  const [batch, length] = ids.dims;
  const left = { input_ids: ids, attention_mask: padded, position_ids: left_padded_position_ids, ...graph.emptyCaches(batch) };
  bundle.compare("left_padded_logits", (await graph.run(left)).logits, padded);
  // GroupQueryAttention takes several tokens after a past for one sequence only.
  const rows = [];
  for (let row = 0; row < batch; row++) rows.push(await graph.decodeAfter7(ids.data.slice(row * length, row * length + 9)));
  const data = Float32Array.from(rows.flatMap((logits) => [...logits.data]));
  bundle.compare("logits_after_7_for_2", new ort.Tensor("float32", data, [batch, 2, rows[0].dims[2]]));
}

async function checkDenoiser(bundle, graph) {
  const inputs = { ...bundle.inputs };
  inputs.timestep = new ort.Tensor("float32", Float32Array.from(inputs.timestep.data, Number), [inputs.timestep.data.length]);
  const text = inputs.encoder_hidden_states;
  if (text) inputs.encoder_attention_mask ??= ones(text.dims.slice(0, 2));
  bundle.compare("sample", (await graph.run(inputs)).out_sample);
}

async function load(bundle) {
  const read = (name) => readFileSync(resolve(bundle.folder, name));
  const externalData = [{ path: WEIGHTS, data: read(WEIGHTS) }];
  const session = await ort.InferenceSession.create(read("model.onnx"), { executionProviders: ["wasm"], externalData });
  const graph = new Graph(session);
  if (bundle.isDecoder) await checkDecoder(bundle, graph);
  else if (bundle.inputs.attention_mask) bundle.comparePlain(await graph.run(bundle.inputs));
  else await checkDenoiser(bundle, graph);
  await session.release();
}

const version = versionOf(given.modules, NAME);
process.exit(await check({ consumer: NAME, version, faults: FAULTS, Tensor: ort.Tensor, load }, given));
