#!/usr/bin/env node
// Continues prompts greedily with llama.cpp: what `dlc run` on the same GGUF file is compared with.
//
//   node scripts/write_llama_cpp.mjs MODULES FILE.gguf PROMPTS.jsonl TOKENS [THREADS]
//
// MODULES is the folder that `scripts/nodeenv.sh llama_cpp` prints. PROMPTS.jsonl has `{"prompt": ...}` a line. Prints, a
// line for each prompt, {"prompt", "ids", "written", "text", "seconds"} as JSON: the ids of the prompt, those of the
// continuation of at most TOKENS tokens and its text, and the seconds that all but the first took.
//
// Exit status: 0 done, 1 llama.cpp failed, 2 bad usage.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, file, prompts, most, threads = "2"] = process.argv.slice(2);
if (!most) {
  console.error("usage: write_llama_cpp.mjs MODULES FILE.gguf PROMPTS.jsonl TOKENS [THREADS]");
  process.exit(2);
}
const require = createRequire(resolve(modules, "package.json"));
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const llama = await getLlama({ gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error" });
const model = await llama.loadModel({ modelPath: resolve(file) });
const context = await model.createContext({ contextSize: 2048, threads: Number(threads) });
const sequence = context.getSequence();
for (const line of readFileSync(prompts, "utf8").split("\n").filter(Boolean)) {
  const { prompt } = JSON.parse(line);
  await sequence.clearHistory();
  const ids = model.tokenize(prompt);
  if (model.tokens.shouldPrependBosToken) ids.unshift(model.tokens.bos);
  const written = [];
  let started;
  for await (const token of sequence.evaluate(ids, { temperature: 0 })) {
    started ??= performance.now();
    if (model.isEogToken(token)) break;
    written.push(token);
    if (written.length >= Number(most)) break;
  }
  const seconds = (performance.now() - started) / 1000;
  const text = model.detokenize(written);
  console.log(JSON.stringify({ prompt, ids: [...ids], written, text, seconds }));
}
await llama.dispose();
