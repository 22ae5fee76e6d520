#!/usr/bin/env python3
"""Check that other people's optimisers take bundles and keep what they compute: onnxslim, onnxsim.

    "$(scripts/pyenv.sh compilers)" scripts/check_optimisers.py BUNDLE...

BUNDLE/model.onnx is read with onnx, optimised, and run by ONNX Runtime before and after on the same drawn inputs.

Prints a line per bundle and optimiser. Exit status: 0 all equal within 1e-3, 1 one failed or differs, 2 bad usage.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim

TOLERANCE = 1e-3
SIZES = {"batch_size": 1, "sequence_length": 4, "past_sequence_length": 3, "total_sequence_length": 7, "steps": 1, "height": 8, "width": 8}
OTHER_SIZE = 4


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    simple, equal = onnxsim.simplify(model)
    if not equal:
        raise ValueError("onnxsim's own comparison found a difference")
    return simple


OPTIMISERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"onnxslim": onnxslim.slim, "onnxsim": simplified}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(of: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Numbers for every input: masks of ones, small ids, normal draws."""
    random = np.random.default_rng(0)
    made = {}
    for entry in of.get_inputs():
        shape = [size if isinstance(size, int) else SIZES.get(size, OTHER_SIZE) for size in entry.shape]
        if entry.type != "tensor(int64)":
            made[entry.name] = random.standard_normal(shape).astype(np.float32)
        elif entry.name == "attention_mask":
            made[entry.name] = np.ones(shape, np.int64)
        else:
            made[entry.name] = (np.arange(np.prod(shape)) % 2).reshape(shape)
    return made


def check(bundle: pathlib.Path, name: str) -> str:
    """What was found. Raises whatever the optimiser raises, and ValueError for a difference."""
    path = str(bundle / "model.onnx")
    before = onnx.load(path)
    after = OPTIMISERS[name](onnx.load(path))
    inputs = feeds(session(before))
    pairs = zip(session(before).run(None, inputs), session(after).run(None, inputs), strict=True)
    error = max((float(np.abs(a - b).max()) for a, b in pairs if a.size), default=0.0)
    if not error <= TOLERANCE:
        raise ValueError(f"the outputs differ by {error}")
    return f"{len(before.graph.node)} nodes, then {len(after.graph.node)}; outputs within {error:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=pathlib.Path, metavar="BUNDLE", help="a folder with a model.onnx")
    failed = 0
    for bundle in parser.parse_args().bundles:
        for name in OPTIMISERS:
            try:
                print(f"ok      {bundle.name} {name}: {check(bundle, name)}", flush=True)
            except Exception as error:  # the optimisers' exceptions share no narrower base
                print(f"FAILED  {bundle.name} {name}: {' '.join(str(error).split())}", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
