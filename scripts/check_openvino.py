#!/usr/bin/env python3
"""Check that OpenVINO's CPU plugin reads bundles of every profile, and computes what was recorded.

    "$(scripts/pyenv.sh scripts/requirements-compilers.txt)" scripts/check_openvino.py BUNDLE... [--results FILE]

Decoders run on whole sequences, then on two tokens after a cache of seven, a sequence at a time: OpenVINO's
GroupQueryAttention is for one. Encoders and denoisers run as a batch.

Exit status: 0 all equal but for what OpenVINO is known to do wrong, 1 a difference, 2 bad usage.
"""

from importlib.metadata import version

import numpy
import openvino

from consumers import Bundle, Consumer, run

SOFTCAP = ("softcap is not supported", "its GroupQueryAttention has no `softcap`; `portable` and `onnx` need none")
OPENVINO = Consumer("openvino", version("openvino"), {"gemma2-wide-ort": SOFTCAP})


def results(request: openvino.InferRequest, feeds: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    return {port.get_any_name(): value.copy() for port, value in request.infer(feeds).items()}


def named(model: openvino.CompiledModel, feeds: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """What the model has an input for."""
    names = {port.get_any_name() for port in model.inputs}
    return {name: feed for name, feed in feeds.items() if name in names}


def empty_caches(model: openvino.CompiledModel) -> dict[str, numpy.ndarray]:
    caches = [port for port in model.inputs if port.get_any_name().startswith("past_key_values.")]
    shapes = {port.get_any_name(): port.partial_shape for port in caches}
    return {name: numpy.zeros([1, shape[1].get_length(), 0, shape[3].get_length()], "f4") for name, shape in shapes.items()}


def run_decoder(bundle: Bundle, model: openvino.CompiledModel) -> None:
    request = model.create_infer_request()

    def logits(ids, mask, past, caches):
        positions = numpy.arange(past, past + ids.shape[1])[None]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **caches}
        out = results(request, named(model, feeds))
        return out["logits"], {k.replace("present", "past_key_values"): v for k, v in out.items() if k != "logits"}

    whole, continued = [], []
    for ids, mask in zip(bundle.inputs["input_ids"], bundle.inputs["attention_mask"], strict=True):
        whole.append(logits(ids[None], mask[None], 0, empty_caches(model))[0])
        ones = numpy.ones((1, 9), "i8")
        _, caches = logits(ids[None, :7], ones[:, :7], 0, empty_caches(model))
        continued.append(logits(ids[None, 7:9], ones, 7, caches)[0])
    bundle.compare("logits", numpy.concatenate(whole), "sequences", bundle.inputs["attention_mask"])
    bundle.compare("logits_after_7_for_2", numpy.concatenate(continued), "2 tokens after 7 cached")


def run_encoder(bundle: Bundle, model: openvino.CompiledModel) -> None:
    ((output, found),) = results(model.create_infer_request(), named(model, bundle.inputs)).items()
    kept = bundle.inputs["attention_mask"] if found.ndim == 3 else None
    bundle.compare(output, found, output, kept)


def run_denoiser(bundle: Bundle, model: openvino.CompiledModel) -> None:
    inputs = bundle.inputs
    inputs["timestep"] = numpy.atleast_1d(inputs["timestep"]).astype("f4")
    text = inputs.get("encoder_hidden_states")
    if text is not None:
        inputs.setdefault("encoder_attention_mask", numpy.ones(text.shape[:2], "i8"))
    found = results(model.create_infer_request(), named(model, inputs))["out_sample"]
    bundle.compare("sample", found, "sample")


def load(bundle: Bundle) -> str:
    # The plugin computes in the type of its choice otherwise.
    model = openvino.compile_model(bundle.folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if bundle.is_decoder:
        run_decoder(bundle, model)
    elif "attention_mask" in bundle.inputs:
        run_encoder(bundle, model)
    else:
        run_denoiser(bundle, model)
    return f"{len(model.inputs)} inputs"


if __name__ == "__main__":
    run(OPENVINO, load, __doc__)
