#!/usr/bin/env python3
"""Check the ONNX files of dlc bundles with other people's code.

    "$(scripts/pyenv.sh)" scripts/check_onnx.py BUNDLE...

Every *.onnx of each bundle goes through four checks:

  checker    onnx.checker on the path, so that the external data files are looked at too. Operators
             of ai.onnx must be valid; those of other domains (com.microsoft) have no schema there
             and are only counted.
  inference  strict shape and type inference with data propagation, for files that use ai.onnx
             alone. A file with other domains can't be inferred completely; its line says so.
  load       ONNX Runtime's Python package makes a CPU session of it. ONNX Runtime has no bfloat16
             on CPU: where a file that holds bfloat16 doesn't load, its line says `cannot run here`
             with ONNX Runtime's reason, and that alone is no failure.
  fusion     of every product by DequantizeLinear in blocks ONNX Runtime makes a MatMulNBits, with
             activations rounded to 8 bits.

Prints one line per file. Exit status: 0 all is well, 1 a check failed, 2 bad usage.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx
import onnxruntime

STANDARD_DOMAINS = {"", "ai.onnx"}


class CheckFailed(Exception):
    """A check that failed, with the reason as its message."""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for subgraph in inner:
                yield from graphs(subgraph)


def foreign_operators(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator outside ai.onnx is used, as `domain.Op`."""
    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    return Counter(f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in STANDARD_DOMAINS)


def holds_bfloat16(model: onnx.ModelProto) -> bool:
    kind = onnx.TensorProto.BFLOAT16
    for graph in graphs(model.graph):
        if any(tensor.data_type == kind for tensor in graph.initializer):
            return True
        values = [*graph.input, *graph.output, *graph.value_info]
        if any(value.type.tensor_type.elem_type == kind for value in values):
            return True
    return False


def check_structure(path: pathlib.Path, strict: bool) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=strict)
    except onnx.checker.ValidationError as error:
        raise CheckFailed(f"checker: {one_line(error)}") from error
    except onnx.shape_inference.InferenceError as error:
        raise CheckFailed(f"inference: {one_line(error)}") from error


def check_load(path: pathlib.Path, bfloat16: bool) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception, and is printed on the file's line
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        if bfloat16:
            return f"cannot run here (bfloat16 on CPU: {one_line(error)})"
        raise CheckFailed(f"load: {one_line(error)}") from error
    return "loads"


def check_fusion(path: pathlib.Path, model: onnx.ModelProto) -> str:
    """What became of the products in blocks, if there are some."""
    in_blocks = [node for node in model.graph.node if any(a.name == "block_size" for a in node.attribute)]
    products = sum(node.op_type == "DequantizeLinear" for node in in_blocks)
    if not products:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(pathlib.Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    operators = Counter(node.op_type for node in optimised.graph.node)
    fused = [node for node in optimised.graph.node if node.op_type == "MatMulNBits"]
    levels = {a.i for node in fused for a in node.attribute if a.name == "accuracy_level"}
    if operators["MatMulNBits"] != products or operators["DequantizeLinear"] or levels != {4}:
        kept = f"{operators['DequantizeLinear']} DequantizeLinear and {len(fused)} MatMulNBits of levels {levels}"
        raise CheckFailed(f"fusion: of {products} products in blocks ONNX Runtime makes {kept}")
    return f", {products} products fused"


def check_file(path: pathlib.Path) -> str:
    """What was found to hold of one ONNX file. Raises CheckFailed."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # a damaged file raises whatever protobuf raises
        raise CheckFailed(f"cannot read: {one_line(error)}") from error
    foreign = foreign_operators(model)
    check_structure(path, strict=not foreign)
    if foreign:
        operators = ", ".join(f"{count} {name}" for name, count in sorted(foreign.items()))
        inference = f"not inferred ({operators})"
    else:
        inference = "inferred strictly"
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), "?")
    bfloat16 = holds_bfloat16(model)
    nodes = len(model.graph.node)
    load = check_load(path, bfloat16) + check_fusion(path, model)
    return f"opset {opset}, {nodes} nodes, checked, {inference}, {load}"


def check_bundle(bundle: pathlib.Path) -> bool:
    """Prints a line per ONNX file of the bundle; whether all of them passed."""
    paths = sorted(bundle.glob("*.onnx"))
    if not paths:
        reason = "holds no .onnx file" if bundle.is_dir() else "is not a folder"
        print(f"FAILED  {bundle}: {reason}")
        return False
    passed = True
    for path in paths:
        try:
            print(f"ok      {path}: {check_file(path)}", flush=True)
        except CheckFailed as failure:
            print(f"FAILED  {path}: {failure}", flush=True)
            passed = False
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=pathlib.Path, metavar="BUNDLE", help="a folder with .onnx files")
    arguments = parser.parse_args()
    results = [check_bundle(bundle) for bundle in arguments.bundles]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
