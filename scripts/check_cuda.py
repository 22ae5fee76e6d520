#!/usr/bin/env python3
"""Compare what `dlc compile --provider cuda` says of nodes left to the CPU with what ONNX Runtime does.

    "$(scripts/pyenv.sh cuda)" scripts/check_cuda.py --dlc target/debug/dlc [--profile P]... [--dtype T]... [MODEL]...

Compiles each MODEL (the goldens, and tiny-llama with a quantised draft, if none is named) in each
profile and element type, and loads its files with ONNX Runtime's own CUDA provider on a pretended
device (see pretended_cuda.py): no GPU is needed, nothing is run. A node must lie on the CPU if dlc
says so, and only then. Nodes that compute with shapes and constants alone may lie on the CPU besides:
ONNX Runtime keeps them there, kernels or not.

Prints one line a bundle. Exit status: 0 all agree, 1 some don't, 2 bad usage.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import pretended_cuda

import onnx

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def compiled(dlc: str, model: pathlib.Path, out: str, options: list[str]) -> list[dict]:
    """The nodes that dlc says are left to the CPU. Raises CalledProcessError."""
    command = [dlc, "compile", str(model), "--provider", "cuda", "--json", "-o", out, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["cpu_nodes"]


def of_shapes(path: pathlib.Path) -> set[str]:
    """Names of the nodes of a file that compute with shapes and constants alone."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer} | {""}
    known, nodes = set(constants), set()
    for node in graph.node:
        if node.op_type == "Shape" or known.issuperset(node.input):
            known.update(node.output)
            nodes.add(node.name)
    return nodes


def differences(bundle: pathlib.Path, said: list[dict]) -> list[str]:
    found = []
    for path in sorted(bundle.rglob("*.onnx")):
        graph = {"model": "target"}.get(path.stem, path.stem)
        expected = {node["node"]: node["operator"] for node in said if node["graph"] == graph}
        placed = pretended_cuda.placed(str(path))
        free = of_shapes(path)
        for name, provider in placed.items():
            on_cpu = provider != pretended_cuda.CUDA
            if on_cpu and name not in expected and name not in free:
                found.append(f"{path.name}: {name} lies on the CPU")
            if not on_cpu and name in expected:
                found.append(f"{path.name}: {name} lies on the device")
    return found


def check(dlc: str, model: pathlib.Path, profile: str, dtype: str) -> bool:
    passes = ["--pass", "fit-prune:drop=4", "--pass", "quantize-draft"] if model.name == "tiny-llama" else []
    with tempfile.TemporaryDirectory() as folder:
        bundle = pathlib.Path(folder, "bundle")
        title = f"{model.name} {profile} {dtype}"
        try:
            said = compiled(dlc, model, str(bundle), ["--profile", profile, "--dtype", dtype, *passes])
        except subprocess.CalledProcessError as error:
            if error.returncode == 3:
                print(f"-       {title}: {error.stderr.strip().splitlines()[-1]}", flush=True)
                return True
            print(f"FAILED  {title}: {error.stderr}", flush=True)
            return False
        try:
            found = differences(bundle, said)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            found = [" ".join(str(error).split())]
    for line in found:
        print(f"FAILED  {title}: {line}", flush=True)
    if not found:
        print(f"ok      {title}: {len(said)} nodes on the CPU", flush=True)
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dlc", required=True, help="the command")
    parser.add_argument("--profile", action="append", choices=["portable", "onnx", "ort"])
    parser.add_argument("--dtype", action="append", choices=["f32", "f16", "bf16"])
    parser.add_argument("models", nargs="*", type=pathlib.Path, metavar="MODEL")
    arguments = parser.parse_args()
    models = arguments.models or [*sorted((FIXTURES / "goldens").iterdir()), FIXTURES / "tiny-llama"]
    pretended_cuda.start()
    results = [
        check(arguments.dlc, model, profile, dtype)
        for model in models
        for profile in arguments.profile or ["portable", "onnx", "ort"]
        for dtype in arguments.dtype or ["f32", "f16", "bf16"]
    ]
    print(f"{sum(results)} of {len(results)} agree")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
