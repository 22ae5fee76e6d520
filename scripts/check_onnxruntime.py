#!/usr/bin/env python3
"""Check that ONNX Runtime's Python package and onnxruntime-genai load bundles as they are and compute what was recorded.

    "$(scripts/pyenv.sh)" scripts/check_onnxruntime.py BUNDLE... [--results FILE]
    "$(scripts/pyenv.sh)" scripts/check_onnxruntime.py --genai BUNDLE... [--results FILE]

ONNX Runtime runs on the CPU: encoders and denoisers as a batch; decoders as batches padded on the right and on the
left, then two tokens after a cache of seven. onnxruntime-genai takes decoders of profile `ort`: the tokens of each
sequence, then two after seven, then six that it writes by itself, which must be those that whole sequences choose.

Exit status: 0 all equal, 1 a difference, 2 bad usage.
"""

import json
import sys

import numpy
import onnxruntime
import onnxruntime_genai

from consumers import Arrays, Bundle, Consumer, Graph, check_choices, close, run

ONNXRUNTIME = Consumer("onnxruntime", onnxruntime.__version__)
GENAI = Consumer("onnxruntime-genai", onnxruntime_genai.__version__)


def load(bundle: Bundle) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    path = bundle.folder / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def compute(feeds: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    return Graph({entry.name: entry.shape for entry in session.get_inputs()}, compute, batches=True).check(bundle)


def load_genai(bundle: Bundle) -> str:
    model = onnxruntime_genai.Model(str(bundle.folder))
    for row, (ids, mask) in enumerate(zip(bundle.inputs["input_ids"], bundle.inputs["attention_mask"], strict=True)):
        kept = mask.astype(bool)
        expected = {name: bundle.tensors[f"output.{name}"][row] for name in ("logits", "logits_after_7_for_2")}
        close("sequences", logits(model, ids[kept]), expected["logits"][kept])
        close("2 tokens after 7 cached", logits(model, ids[:7], ids[7:9]), expected["logits_after_7_for_2"])
    config = json.loads((bundle.folder / "genai_config.json").read_text(encoding="utf-8"))
    ends = config["model"].get("eos_token_id", [])
    check_generation(model, bundle.inputs["input_ids"][0, :7], ends if isinstance(ends, list) else [ends])
    return "generates"


def generator(model: onnxruntime_genai.Model, length: int) -> onnxruntime_genai.Generator:
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, batch_size=1, min_length=length, max_length=length)
    return onnxruntime_genai.Generator(model, params)


def logits(model: onnxruntime_genai.Model, *parts: numpy.ndarray) -> numpy.ndarray:
    """The logits of the last of the parts of a sequence."""
    generating = generator(model, sum(map(len, parts)) + 1)
    for part in parts:
        generating.append_tokens(part.astype(numpy.int32))
    return generating.get_output("logits")[0]


def check_generation(model: onnxruntime_genai.Model, prompt: numpy.ndarray, ends: list[int]) -> None:
    generating = generator(model, len(prompt) + 6)
    generating.append_tokens(prompt.astype(numpy.int32))
    while not generating.is_done():
        generating.generate_next_token()
    text = generating.get_sequence(0).tolist()
    check_choices(text, len(prompt), ends, lambda ids: logits(model, numpy.array(ids))[-1])


if __name__ == "__main__":
    genai = "--genai" in sys.argv
    if genai:
        sys.argv.remove("--genai")
        run(GENAI, load_genai, __doc__)
    else:
        run(ONNXRUNTIME, load, __doc__)
