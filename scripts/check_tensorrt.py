#!/usr/bin/env python3
"""Check that TensorRT for RTX parses the ONNX files of bundles and builds engines of them. Runs nothing: there is no GPU.

    "$(scripts/pyenv.sh compilers)" scripts/check_tensorrt.py BUNDLE... [--results FILE]

Every *.onnx of each bundle is parsed with TensorRT's own parser, and an engine is built of it for compute capability
8.9, with a range for every axis that has no fixed size. Building proves that TensorRT has kernels for every layer; what
they compute, it doesn't prove.

Exit status: 0 every engine was built, 1 one wasn't, 2 bad usage.
"""

import argparse
import pathlib
import sys

import onnx
import tensorrt_rtx as tensorrt

from consumers import Consumer, recorded, write_rows

TENSORRT = Consumer("tensorrt-rtx", tensorrt.__version__)
# The least, usual and largest size of each axis.
RANGES = {
    "batch_size": (1, 1, 2),
    "sequence_length": (1, 8, 16),
    "past_sequence_length": (0, 8, 16),
    "total_sequence_length": (1, 16, 32),
    "text": (1, 5, 16),
    "steps": (1, 1, 2),
    "height": (16, 16, 32),
    "width": (16, 16, 32),
}


class Failed(Exception):
    """What TensorRT says of a file."""


class Errors(tensorrt.ILogger):
    """Keeps the errors that TensorRT would print."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
        if severity in (tensorrt.ILogger.INTERNAL_ERROR, tensorrt.ILogger.ERROR):
            self.lines.append(message)


def profile(builder: tensorrt.Builder, path: pathlib.Path) -> tensorrt.IOptimizationProfile:
    profile = builder.create_optimization_profile()
    for port in onnx.load(path, load_external_data=False).graph.input:
        dims = port.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims):
            sizes = [RANGES[dim.dim_param] if dim.dim_param else (dim.dim_value,) * 3 for dim in dims]
            profile.set_shape(port.name, *zip(*sizes, strict=True))
    return profile


def plan(
    path: pathlib.Path, errors: Errors, capability: tensorrt.ComputeCapability | None
) -> tuple[tensorrt.IHostMemory, int]:
    """Parses the file and builds an engine, without a capability for the GPU that is here; and the number of layers.

    Raises Failed.
    """
    builder = tensorrt.Builder(errors)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, errors)
    if not parser.parse_from_file(str(path)):
        raise Failed("; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    config.add_optimization_profile(profile(builder, path))
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise Failed("; ".join(errors.lines))
    return built, network.num_layers


def build(path: pathlib.Path) -> str:
    """Builds an engine for compute capability 8.9, and says how large that is. Raises Failed."""
    engine, layers = plan(path, Errors(), tensorrt.ComputeCapability.SM89)
    return f"{layers} layers, an engine of {engine.nbytes} bytes"


def check(bundle: pathlib.Path) -> tuple[bool, dict]:
    """Prints a line for each ONNX file; whether all were built, and the row of results."""
    fault = None
    for path in sorted(bundle.glob("*.onnx")):
        try:
            print(f"ok      {path}: {build(path)}", flush=True)
        except Failed as error:
            fault = " ".join(str(error).split())
            print(f"FAILED  {path}: {fault[:500]}", flush=True)
    family, profile, dtype = (recorded(bundle, key) for key in ("  family", "profile", "  dtype"))
    return fault is None, TENSORRT.row(family, bundle.name.removesuffix(f"-{profile}"), profile, dtype, fault)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=pathlib.Path, metavar="BUNDLE", help="a folder with .onnx files")
    parser.add_argument("--results", type=pathlib.Path, metavar="FILE", help="add a line of JSON for each bundle")
    arguments = parser.parse_args()
    checked = [check(bundle) for bundle in arguments.bundles]
    if arguments.results:
        write_rows([row for _, row in checked], arguments.results)
    return 0 if all(passed for passed, _ in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
