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

import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { check, known, readArguments, versionOf } from "./consumers.mjs";

const NAME = "@huggingface/transformers";
// By the end of the class that saved the model. A discriminator has no class of its own there.
const HEADS = {
  ForCausalLM: "AutoModelForCausalLM",
  LMHeadModel: "AutoModelForCausalLM",
  ForMaskedLM: "AutoModelForMaskedLM",
  ForSequenceClassification: "AutoModelForSequenceClassification",
  ForTokenClassification: "AutoModelForTokenClassification",
  ForQuestionAnswering: "AutoModelForQuestionAnswering",
  ForPreTraining: "AutoModel",
  Model: "AutoModel",
};
const FAULTS = {
  ...known("mixtral", "Unsupported model type: mixtral", "it has no class for this family"),
  ...known("llama-classifier gemma3_text-classifier", "Unsupported model type", "it has no class for classifiers of this family"),
  ...known("modernbert-answers", "Unsupported model type", "it has no class for answers by this family"),
};

const given = readArguments("check_transformers_js.mjs");
const require = createRequire(resolve(given.modules, "package.json"));
const library = await import(pathToFileURL(require.resolve(NAME)).href);
library.env.allowRemoteModels = false;

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

async function load(bundle) {
  library.env.localModelPath = dirname(bundle.folder);
  const head = Object.keys(HEADS).find((head) => bundle.config.architectures[0].endsWith(head));
  const model = await library[HEADS[head]].from_pretrained(basename(bundle.folder), { device: "cpu" });
  bundle.comparePlain(await model(bundle.plain));
  // In half precision the two may choose otherwise where two tokens are about as likely.
  if (bundle.isDecoder && bundle.dtype === "f32") await checkGeneration(model, bundle.inputs.input_ids);
  await model.dispose();
}

const version = versionOf(given.modules, NAME);
process.exit(await check({ consumer: "transformers.js", version, faults: FAULTS, Tensor: library.Tensor, load }, given));
