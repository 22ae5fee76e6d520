#!/usr/bin/env python3
"""Check that Optimum's ORTModel classes load bundles as they are and say what transformers said.

    "$(scripts/pyenv.sh scripts/requirements-hf.txt)" scripts/check_optimum.py BUNDLE... [--results FILE]

Encoders go through ORTModelForMaskedLM and its like, decoders through ORTModelForCausalLM: whole sequences, padded on
the right and on the left, then two tokens after a cache of seven, then `generate`, which must choose what whole
sequences choose.

Exit status: 0 all equal but for what Optimum is known to do wrong, 1 a difference, 2 bad usage.
"""

from importlib.metadata import version

import numpy
import torch
from optimum import onnxruntime as optimum

from consumers import Bundle, Consumer, Differs, run

SHOWN = "Got invalid dimensions for input: past_key_values"
HEADS = "for this family it takes `num_attention_heads` for the heads of the caches, not `num_key_value_heads`"
WIDTH = "for this family it takes `hidden_size / num_attention_heads` for the width of a head, not `head_dim`"
OPTIMUM = Consumer(
    "optimum",
    version("optimum-onnx"),
    {"gemma2": (SHOWN, HEADS), "olmo2": (SHOWN, HEADS), "phi3": (SHOWN, HEADS), "qwen3": (SHOWN, WIDTH)},
)


def tensors(arrays: dict[str, numpy.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_encoder(bundle: Bundle) -> str:
    head = "ForFeatureExtraction" if bundle.architecture == "Model" else bundle.architecture
    model = getattr(optimum, "ORTModel" + head).from_pretrained(bundle.folder)
    output = "last_hidden_state" if bundle.architecture == "Model" else "logits"
    found = model(**tensors(bundle.inputs))[output].numpy()
    kept = bundle.inputs["attention_mask"] if found.ndim == 3 else None
    bundle.compare(output, found, output, kept)
    return type(model).__name__


def load_decoder(bundle: Bundle) -> str:
    model = optimum.ORTModelForCausalLM.from_pretrained(bundle.folder)
    inputs = tensors(bundle.inputs)
    mask = inputs["attention_mask"]
    bundle.compare("logits", model(**inputs).logits.numpy(), "sequences", mask.numpy())
    left = tensors({k.removeprefix("input.left_padded_"): v for k, v in bundle.tensors.items() if "input.left" in k})
    found = model(input_ids=inputs["input_ids"], **left).logits.numpy()
    bundle.compare("left_padded_logits", found, "padded on the left", left["attention_mask"].numpy())
    # GroupQueryAttention takes several tokens after a past for one sequence only.
    rows = [continued(model, row[None]) for row in inputs["input_ids"]]
    bundle.compare("logits_after_7_for_2", numpy.concatenate(rows), "2 tokens after 7 cached")
    check_generation(model, inputs["input_ids"][:1, :7])
    return f"{type(model).__name__}, generates"


def continued(model, ids: torch.Tensor) -> numpy.ndarray:
    """The logits of two tokens after a cache of seven."""
    past = model(input_ids=ids[:, :7], attention_mask=torch.ones(1, 7, dtype=torch.long), use_cache=True).past_key_values
    mask = torch.ones(1, 9, dtype=torch.long)
    return model(input_ids=ids[:, 7:9], attention_mask=mask, past_key_values=past, use_cache=True).logits.numpy()


def check_generation(model, prompt: torch.Tensor) -> None:
    options = {"do_sample": False, "min_new_tokens": 6, "max_new_tokens": 6, "pad_token_id": 0}
    text = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
    # Tiny goldens keep the ids of large vocabularies.
    ends = [end for end in ends if end < model.config.vocab_size]
    for length in range(prompt.shape[1], len(text)):
        whole = torch.tensor([text[:length]])
        logits = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, -1]
        logits[ends] = -torch.inf
        if text[length] != int(logits.argmax()):
            raise Differs(f"generate: token {length} is {text[length]}, not {int(logits.argmax())}")


def load(bundle: Bundle) -> str:
    return load_decoder(bundle) if bundle.is_decoder else load_encoder(bundle)


if __name__ == "__main__":
    run(OPTIMUM, load, __doc__)
