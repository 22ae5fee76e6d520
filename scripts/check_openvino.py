#!/usr/bin/env python3
"""Check that OpenVINO's CPU plugin reads bundles of every profile, and computes what was recorded.

    "$(scripts/pyenv.sh compilers)" scripts/check_openvino.py BUNDLE... [--results FILE]

Decoders run on whole sequences, then on two tokens after a cache of seven, a sequence at a time: OpenVINO's
GroupQueryAttention is for one. Encoders and denoisers run as a batch.

Exit status: 0 all equal but for what OpenVINO is known to do wrong, 1 a difference, 2 bad usage.
"""

from importlib.metadata import version

import openvino

from consumers import Arrays, Bundle, Consumer, Graph, known, run

OPENVINO = Consumer(
    "openvino",
    version("openvino"),
    {
        **known("gemma2-wide-ort", "softcap is not supported", "its GroupQueryAttention has no `softcap`"),
        **known(
            "mixtral-ort qwen3_moe-ort qwen3_moe-steps-ort",
            "No conversion rule found for operations: com.microsoft.MoE",
            "it has no `MoE`",
        ),
    },
)


def load(bundle: Bundle) -> str:
    # The plugin computes in the type of its choice otherwise.
    model = openvino.compile_model(bundle.folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = model.create_infer_request()

    def compute(feeds: Arrays) -> Arrays:
        return {port.get_any_name(): value.copy() for port, value in request.infer(feeds).items()}

    shapes = {
        port.get_any_name(): [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
        for port in model.inputs
    }
    return Graph(shapes, compute, batches=False).check(bundle)


if __name__ == "__main__":
    run(OPENVINO, load, __doc__)
