#!/usr/bin/env python3
"""Check that Optimum's ORTModel classes load bundles as they are and say what transformers said.

    "$(scripts/pyenv.sh hf)" scripts/check_optimum.py BUNDLE... [--results FILE]

Encoders go through ORTModelForMaskedLM and its like, decoders through ORTModelForCausalLM: whole sequences, padded on
the right and on the left, then two tokens after a cache of seven, then `generate`, which must choose what whole
sequences choose.

Exit status: 0 all equal but for what Optimum is known to do wrong, 1 a difference, 2 bad usage.
"""

from importlib.metadata import version

import numpy
import torch
from optimum import onnxruntime as optimum

from consumers import Arrays, Bundle, Consumer, check_choices, known, run

SHOWN = "Got invalid dimensions for input: past_key_values"
# onnxruntime/modeling_decoder.py lists the families whose caches have `num_key_value_heads` heads, and those whose heads
# are `head_dim` wide.
HEADS = "for this family it takes `num_attention_heads` for the heads of the caches, not `num_key_value_heads`"
WIDTH = "for this family, as for most, it takes `hidden_size / num_attention_heads` for the width of a head, not `head_dim`"
OPTIMUM = Consumer(
    "optimum",
    version("optimum-onnx"),
    {
        **known("gemma2 gemma2-wide mixtral olmo2 olmo2-wide phi3 phi3-long phi3-partial phi3-wide", SHOWN, HEADS),
        **known("qwen3", SHOWN, WIDTH),
    },
)


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_encoder(bundle: Bundle) -> str:
    # A discriminator has no class of its own there.
    names = {"Model": "FeatureExtraction", "ForPreTraining": "CustomTasks"}
    head = names.get(bundle.architecture, bundle.architecture.removeprefix("For"))
    model = getattr(optimum, "ORTModelFor" + head).from_pretrained(bundle.folder)
    found = model(**tensors(bundle.inputs))
    bundle.compare_encoder({output: found[output].numpy() for output in bundle.outputs})
    return type(model).__name__


def load_decoder(bundle: Bundle) -> str:
    model = optimum.ORTModelForCausalLM.from_pretrained(bundle.folder)
    inputs = tensors(bundle.inputs)
    mask = inputs["attention_mask"]
    bundle.compare("logits", model(**inputs).logits.numpy(), "sequences", mask.numpy())
    left = bundle.left_padded
    found = model(**tensors(left)).logits.numpy()
    bundle.compare("left_padded_logits", found, "padded on the left", left["attention_mask"])
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

    def logits(ids: list[int]) -> numpy.ndarray:
        whole = torch.tensor([ids])
        return model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, -1].numpy()

    check_choices(text, prompt.shape[1], ends, logits)


def load(bundle: Bundle) -> str:
    return load_decoder(bundle) if bundle.is_decoder else load_encoder(bundle)


if __name__ == "__main__":
    run(OPTIMUM, load, __doc__)
