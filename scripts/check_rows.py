#!/usr/bin/env python3
"""Whether ONNX Runtime's MatMulNBits says of a row among an odd number of others what it says of it among an even number.

    "$(scripts/pyenv.sh)" scripts/check_rows.py [--rows 16] [--threads 2]

Products of 4 and 8 bits, groups of 16 to 256, of shapes of SmolLM2 and Qwen 2.5; activations in 8 bits (accuracy_level 4).
`odd_rows_agree` of runtime/src/verification.rs takes those that agree for such that need no even number of tokens in a pass.

Prints a Markdown table. Exit status: 0 groups of up to 32 in 4 bits and 64 in 8 bits agree for every number of rows, and all
groups for even numbers; 1 they don't; 2 bad usage.
"""

import argparse
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

SHAPES = [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152), (896, 896), (896, 128), (4864, 896), (896, 4864)]
AGREEING = {4: 32, 8: 64}


def session(bits: int, group: int, inner: int, outer: int, threads: int) -> onnxruntime.InferenceSession:
    draw = np.random.default_rng(1)
    groups = inner // group
    codes = draw.integers(0, 256, (outer, groups, group * bits // 8), dtype=np.uint8)
    scales = ((draw.random(outer * groups) + 0.5) * 0.01).astype(np.float32)
    zeros = draw.integers(0, 256, outer * ((groups * bits + 7) // 8), dtype=np.uint8)
    constants = {"codes": codes, "scales": scales, "zeros": zeros}
    kind = {"K": inner, "N": outer, "bits": bits, "block_size": group, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], domain="com.microsoft", **kind)
    port = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, width])
    initializers = [onnx.numpy_helper.from_array(data, name) for name, data in constants.items()]
    graph = helper.make_graph([node], "product", [port("x", inner)], [port("y", outer)], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def differing(product: onnxruntime.InferenceSession, inner: int, rows: int) -> list[int]:
    """Numbers of rows among which some row comes otherwise than among all."""
    x = np.random.default_rng(2).standard_normal((1, rows, inner)).astype(np.float32)
    whole = product.run(None, {"x": x})[0]
    return [n for n in range(1, rows) if (product.run(None, {"x": x[:, :n]})[0] != whole[:, :n]).any()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(3)
    print("| bits | group | shapes | differ for an odd number of rows | for an even one |\n|---|---|---|---|---|")
    holds = True
    for bits, agreeing in AGREEING.items():
        for group in (16, 32, 64, 128, 256):
            shapes = [shape for shape in SHAPES if shape[0] % group == 0]
            found = [differing(session(bits, group, *shape, arguments.threads), shape[0], arguments.rows) for shape in shapes]
            odd, even = (sum(any(n % 2 == rest for n in numbers) for numbers in found) for rest in (1, 0))
            print(f"| {bits} | {group} | {len(shapes)} | {odd} | {even} |", flush=True)
            holds &= even == 0 and (odd == 0 or group > agreeing)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
