#!/usr/bin/env python3
"""Time the ways in which ONNX multiplies rows by a matrix: Gemm, FusedMatMul and MatMul, on ONNX Runtime's CPU.

    "$(scripts/pyenv.sh)" scripts/bench_products.py [--hidden 576] [--mlp 1536] [--layers 12] [--threads 2]

Gemm and FusedMatMul read the matrix as `[out, in]`, MatMul as `[in, out]`. Each is a chain of products from `hidden` to
`mlp` numbers and back. The three run in turn; printed are medians, divided by Gemm's.
"""

import argparse
import os
import statistics
import time

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

WAYS = {"Gemm": {"transB": 1}, "FusedMatMul": {"transB": 1, "domain": "com.microsoft"}, "MatMul": {}}
ROWS = [1, 4, 8, 128]


def chain(way: str, hidden: int, mlp: int, layers: int) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes, matrices, last = [], [], "x"
    for layer, (inputs, outputs) in enumerate([(hidden, mlp), (mlp, hidden)] * layers):
        matrix = (random.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)
        stored = matrix if WAYS[way] else np.ascontiguousarray(matrix.T)
        matrices.append(numpy_helper.from_array(stored, f"w{layer}"))
        nodes.append(helper.make_node(way, [last, f"w{layer}"], [f"y{layer}"], **WAYS[way]))
        last = f"y{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", hidden]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], matrices)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("hidden", 576), ("mlp", 1536), ("layers", 12), ("threads", 2), ("repeats", 40)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    sessions = {
        way: onnxruntime.InferenceSession(
            chain(way, arguments.hidden, arguments.mlp, arguments.layers).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        for way in WAYS
    }
    for rows in ROWS:
        x = np.random.default_rng(1).standard_normal((rows, arguments.hidden)).astype(np.float32)
        taken = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way, session in sessions.items():
                start = time.perf_counter()
                session.run(None, {"x": x})
                taken[way].append(time.perf_counter() - start)
        medians = {way: statistics.median(times) for way, times in taken.items()}
        ratios = ", ".join(f"{way} {medians[way] / medians['Gemm']:.3f}" for way in WAYS)
        print(f"{rows} rows: {ratios}", flush=True)


if __name__ == "__main__":
    main()
