#!/usr/bin/env python3
"""Time the ways in which ONNX multiplies rows by a quantised matrix, on ONNX Runtime's CPU.

    "$(scripts/pyenv.sh)" scripts/bench_quantized.py [--hidden 576] [--mlp 1536] [--layers 12] [--threads 2]

    arithmetic   codes unpacked by Cast, sums and products, then Gemm: profile `portable`
    turned       Transpose of the codes, DequantizeLinear in blocks, MatMul: profile `onnx`
    stored       the same with codes that are stored transposed
    nbits        MatMulNBits: profile `ort`

Each is a chain of products from `hidden` to `mlp` numbers and back, with zero points and groups of 32. First a process
of its own loads each: printed are seconds, the anonymous memory that it then holds and the most resident memory on the
way, both without what it held before, the largest error over the largest number, and what the optimised graph is made
of. Then all run in turn; printed are the least milliseconds of each, which other work on the machine sways least.
"""

import argparse
import collections
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

WAYS = ["arithmetic", "turned", "stored", "nbits"]
ROWS = [1, 4, 8, 128]
GROUP = 32


class Chain:
    """A chain of quantised products as nodes, with its matrices in a file of their own."""

    def __init__(self, bits: int):
        self.bits, self.nodes, self.initializers, self.data = bits, [], [], bytearray()

    def constant(self, name: str, kind: int, array: np.ndarray) -> str:
        self.initializers.append(helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True))
        return name

    def stored(self, name: str, kind: int, shape: tuple[int, ...], array: np.ndarray) -> str:
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        self.data.extend(bytes(-len(self.data) % 4096))
        place = {"location": "weights.bin", "offset": len(self.data), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.data.extend(array.tobytes())
        self.initializers.append(tensor)
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def packed(self, codes: np.ndarray) -> np.ndarray:
        """Codes as bytes, two of 4 bits in one, the first below."""
        if self.bits == 8:
            return codes
        pairs = codes.reshape(-1, 2)
        return pairs[:, 0] | pairs[:, 1] << 4

    def product(self, way: str, at: int, x: str, parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> str:
        codes, scales, zeros = parts
        (out, inner), groups = codes.shape, scales.shape[1]
        made = f"y{at}"
        if way == "nbits":
            blob = GROUP * self.bits // 8
            inputs = [
                x,
                self.stored(f"q{at}", TensorProto.UINT8, (out, groups, blob), self.packed(codes)),
                self.stored(f"s{at}", TensorProto.FLOAT, scales.shape, scales),
                self.stored(f"z{at}", TensorProto.UINT8, (out, groups * self.bits // 8), self.packed(zeros)),
            ]
            attributes = {"K": inner, "N": out, "bits": self.bits, "block_size": GROUP, "accuracy_level": 4}
            return self.add("MatMulNBits", inputs, made, domain="com.microsoft", **attributes)
        if way == "arithmetic":
            return self.add("Gemm", [x, self.unpacked(at, parts)], made, transB=1)
        turned = way == "turned"
        kind = TensorProto.UINT4 if self.bits == 4 else TensorProto.UINT8
        inputs = []
        for letter, of, array in [("q", kind, codes), ("s", TensorProto.FLOAT, scales), ("z", kind, zeros)]:
            array = array if turned else np.ascontiguousarray(array.T)
            data = array if letter == "s" else self.packed(array)
            name = self.stored(f"{letter}{at}", of, array.shape, data)
            inputs.append(self.add("Transpose", [name], f"{name}.turned", perm=[1, 0]) if turned else name)
        matrix = self.add("DequantizeLinear", inputs, f"w{at}", axis=0, block_size=GROUP)
        return self.add("MatMul", [x, matrix], made)

    def unpacked(self, at: int, parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> str:
        codes, scales, zeros = parts
        (out, inner), groups = codes.shape, scales.shape[1]
        scales = self.stored(f"s{at}", TensorProto.FLOAT, (out, groups, 1), scales)
        steps = []
        for letter, array, shape in [("q", codes, (out, groups, GROUP)), ("z", zeros, (out, groups, 1))]:
            data = self.packed(array)
            name = self.stored(f"{letter}{at}", TensorProto.UINT8, (data.size,), data)
            floats = self.add("Cast", [name], f"{name}.floats", to=TensorProto.FLOAT)
            if self.bits == 4:
                sixteenth = self.constant(f"{name}.1/16", TensorProto.FLOAT, np.float32(1 / 16))
                sixteen = self.constant(f"{name}.16", TensorProto.FLOAT, np.float32(16))
                high = self.add("Floor", [self.add("Mul", [floats, sixteenth], f"{name}.part")], f"{name}.high")
                upper = self.add("Mul", [high, sixteen], f"{name}.upper")
                low = self.add("Sub", [floats, upper], f"{name}.low")
                axis = self.constant(f"{name}.axis", TensorProto.INT64, np.array([-1]))
                pair = [self.add("Unsqueeze", [half, axis], f"{half}.pair") for half in (low, high)]
                floats = self.add("Concat", pair, f"{name}.codes", axis=-1)
            shape = self.constant(f"{name}.shape", TensorProto.INT64, np.array(shape))
            steps.append(self.add("Reshape", [floats, shape], f"{name}.grouped"))
        entries = self.add("Mul", [self.add("Sub", steps, f"d{at}"), scales], f"e{at}")
        shape = self.constant(f"w{at}.shape", TensorProto.INT64, np.array([out, inner]))
        return self.add("Reshape", [entries, shape], f"w{at}")


def write_chain(folder: Path, way: str, bits: int, arguments: argparse.Namespace) -> Path:
    """The chain as a file in `folder`, beside what it should make of one row of `sample`."""
    random, chain = np.random.default_rng(0), Chain(bits)
    last, rows = "x", sample(1, arguments.hidden)
    sizes = [(arguments.hidden, arguments.mlp), (arguments.mlp, arguments.hidden)] * arguments.layers
    middle = 1 << (bits - 1)
    for at, (inner, out) in enumerate(sizes):
        codes = random.integers(0, 1 << bits, (out, inner), dtype=np.uint8)
        zeros = random.integers(middle - 1, middle + 2, (out, inner // GROUP), dtype=np.uint8)
        scales = ((1 + random.random(zeros.shape)) * 2 / middle / np.sqrt(inner)).astype(np.float32)
        last = chain.product(way, at, last, (codes, scales, zeros))
        steps = codes.reshape(*zeros.shape, GROUP).astype(np.float32) - zeros[..., None]
        rows = rows @ (steps * scales[..., None]).reshape(out, inner).T
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", arguments.hidden]) for name in ("x", last)
    ]
    graph = helper.make_graph(chain.nodes, "chain", ends[:1], ends[1:], chain.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    folder.mkdir()
    (folder / "weights.bin").write_bytes(chain.data)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    np.save(folder / "expected.npy", rows)
    return folder / "model.onnx"


def sample(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, width)).astype(np.float32)


def load(model: Path, threads: int, optimised: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.optimized_model_filepath = optimised
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def megabytes(kind: str) -> float:
    """`RssAnon`, anonymous memory, or `VmHWM`, the most resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1e3
    return float("nan")


def describe(model: Path, threads: int) -> None:
    """Prints what loading costs and what was loaded, for the process that started this one."""
    before, start = {kind: megabytes(kind) for kind in ("RssAnon", "VmHWM")}, time.perf_counter()
    session = load(model, threads)
    seconds = time.perf_counter() - start
    held, most = (megabytes(kind) - of for kind, of in before.items())
    expected = np.load(model.parent / "expected.npy")
    (made,) = session.run(None, {"x": sample(1, expected.shape[1])})
    error = np.abs(made - expected).max() / np.abs(expected).max()
    optimised = model.parent / "optimised.onnx"
    load(model, threads, str(optimised))
    nodes = onnx.load(optimised, load_external_data=False).graph.node
    counts = collections.Counter(node.op_type for node in nodes)
    operators = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"loads in {seconds:.2f} s, holds {held:.0f} MB, at most {most:.0f} MB; error {error:.1e}; {operators}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("hidden", 576), ("mlp", 1536), ("layers", 12), ("threads", 2), ("repeats", 40)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--describe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.describe:
        describe(arguments.describe, arguments.threads)
        return
    for bits in (4, 8):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), bits, arguments)


def measure(folder: Path, bits: int, arguments: argparse.Namespace) -> None:
    models = {way: write_chain(folder / way, way, bits, arguments) for way in WAYS}
    for way, model in models.items():
        command = [sys.executable, __file__, "--describe", model, "--threads", str(arguments.threads)]
        described = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{bits} bits, {way}: {described}", end="", flush=True)
    sessions = {way: load(model, arguments.threads) for way, model in models.items()}
    for rows in ROWS:
        x = sample(rows, arguments.hidden)
        taken = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way, session in sessions.items():
                start = time.perf_counter()
                session.run(None, {"x": x})
                taken[way].append(1e3 * (time.perf_counter() - start))
        least = ", ".join(f"{way} {min(times):.2f}" for way, times in taken.items())
        print(f"{bits} bits, {rows} rows: {least}", flush=True)


if __name__ == "__main__":
    main()
