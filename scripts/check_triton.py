#!/usr/bin/env python3
"""Check config.pbtxt of bundles for Triton against Triton's own schema and against the ONNX file.

    "$(scripts/pyenv.sh compilers)" scripts/check_triton.py BUNDLE... [--results FILE]

No Triton runs here. The text is parsed as `ModelConfig` of Triton's client library, which refuses fields and values
that Triton doesn't have. Every input and output of `1/model.onnx` must stand there in the file's order, with its name,
its element type and its axes: a size, or -1.

Exit status: 0 all is well, 1 a difference, 2 bad usage.
"""

from importlib.metadata import version

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from consumers import Bundle, Consumer, Differs, run

TRITON = Consumer("triton", version("tritonclient"))
TYPES = {"FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "BFLOAT16": "TYPE_BF16", "INT64": "TYPE_INT64"}


def described(ports) -> list[tuple[str, str, list[int]]]:
    return [(port.name, model_config_pb2.DataType.Name(port.data_type), list(port.dims)) for port in ports]


def declared(ports) -> list[tuple[str, str, list[int]]]:
    found = []
    for port in ports:
        tensor = port.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        found.append((port.name, TYPES[onnx.TensorProto.DataType.Name(tensor.elem_type)], dims))
    return found


def load(bundle: Bundle) -> str:
    text = (bundle.folder / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    graph = onnx.load(bundle.folder / "1" / "model.onnx").graph
    for what in ("input", "output"):
        ours, files = described(getattr(config, what)), declared(getattr(graph, what))
        if ours != files:
            raise Differs(f"{what}s: {ours}, and the file has {files}")
    if (config.backend, config.max_batch_size) != ("onnxruntime", 0):
        raise Differs(f"backend {config.backend}, batches of {config.max_batch_size}")
    return f"{len(config.input)} inputs, {len(config.output)} outputs"


if __name__ == "__main__":
    run(TRITON, load, __doc__)
