#!/usr/bin/env python3
"""Time two ONNX encoders side by side on ONNX Runtime's CPU: a bundle of dlc and a peer's export.

    "$(scripts/pyenv.sh)" scripts/bench_encoder.py --ours BUNDLE/model.onnx --peer FILE.onnx [--threads 2]
        [--lengths 16,64,128,256] [--batch 1] [--repeats 30] [--json]

Both files are loaded in this process, with the same options: --threads for operators, one operator at a time,
all graph optimisations. Each length gets the same random tokens, no padding, and each file only the
inputs that it has. The two run in turn, the first one changing every round, so that whatever else the machine
does hits both; neither's threads spin while the other runs. A few rounds go first, unmeasured.

Prints per length the median milliseconds of each, the ratio ours/peer (below 1: ours is faster), the lower and
upper quartile of the rounds' own ratios, and the largest difference between the outputs that both have. The
peer may come from scripts/export_encoder_peer.py.

Exit status: 0 done, 1 a file does not load or run, or they share no output, 2 bad usage.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from dataclasses import asdict, dataclass

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

WARM_UP = 3
NUMPY_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}
FIRST_TOKEN = 3  # below lie padding and the like


class BenchFailed(Exception):
    """A file that can't be measured, with the reason as its message."""


@dataclass(frozen=True)
class Measurement:
    length: int
    ours_ms: float
    peer_ms: float
    ratio: float
    ratio_lower_quartile: float
    ratio_upper_quartile: float
    largest_difference: float


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class Encoder:
    def __init__(self, path: pathlib.Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what goes wrong comes as an exception
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base
            raise BenchFailed(f"{path} does not load: {one_line(error)}") from error
        self.path = path
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def feed(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs that the file has, for these tokens."""
        values = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.zeros_like(tokens),
            "position_ids": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
        }
        feed = {}
        for entry in self.session.get_inputs():
            if entry.name not in values or entry.type not in NUMPY_TYPES:
                raise BenchFailed(f"{self.path} asks for {entry.name}, {entry.type}: no input of an encoder")
            feed[entry.name] = np.ascontiguousarray(values[entry.name], dtype=NUMPY_TYPES[entry.type])
        return feed

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self.session.run(self.outputs, feed)
        except Exception as error:
            shape = list(feed["input_ids"].shape) if "input_ids" in feed else "none"
            raise BenchFailed(f"{self.path} does not run on input_ids of {shape}: {one_line(error)}") from error

    def milliseconds(self, feed: dict[str, np.ndarray]) -> float:
        start = time.perf_counter()
        self.run(feed)
        return 1e3 * (time.perf_counter() - start)


def largest_difference(ours: Encoder, peer: Encoder, feeds: list[dict[str, np.ndarray]]) -> float:
    one = dict(zip(ours.outputs, ours.run(feeds[0]), strict=True))
    other = dict(zip(peer.outputs, peer.run(feeds[1]), strict=True))
    shared = [name for name in one if name in other]
    if not shared:
        raise BenchFailed(f"no output in common: {', '.join(one)} against {', '.join(other)}")
    for name in shared:
        if one[name].shape != other[name].shape:
            raise BenchFailed(f"{name} has shape {list(one[name].shape)} against {list(other[name].shape)}")
    differences = [np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max() for name in shared]
    return float(np.max(differences))


def measure(ours: Encoder, peer: Encoder, tokens: np.ndarray, repeats: int) -> Measurement:
    feeds = [ours.feed(tokens), peer.feed(tokens)]
    difference = largest_difference(ours, peer, feeds)
    times: list[tuple[float, float]] = []
    for turn in range(WARM_UP + repeats):
        if turn % 2 == 0:
            one = ours.milliseconds(feeds[0])
            other = peer.milliseconds(feeds[1])
        else:
            other = peer.milliseconds(feeds[1])
            one = ours.milliseconds(feeds[0])
        if turn >= WARM_UP:
            times.append((one, other))
    one, other = (statistics.median(column) for column in zip(*times, strict=True))
    lower, upper = np.quantile([ours_ms / peer_ms for ours_ms, peer_ms in times], [0.25, 0.75])
    return Measurement(tokens.shape[1], one, other, one / other, float(lower), float(upper), difference)


def show(result: Measurement) -> str:
    return (
        f"{result.length:6}  {result.ours_ms:8.2f}  {result.peer_ms:8.2f}  {result.ratio:9.3f}  "
        f"{result.ratio_lower_quartile:5.3f}-{result.ratio_upper_quartile:5.3f}  {result.largest_difference:18.1e}"
    )


def bench(arguments: argparse.Namespace) -> None:
    ours = Encoder(arguments.ours, arguments.threads)
    peer = Encoder(arguments.peer, arguments.threads)
    random = np.random.default_rng(0)
    if not arguments.json:
        print(f"onnxruntime {onnxruntime.__version__}, {arguments.threads} threads, batch {arguments.batch}")
        print("length   ours ms   peer ms  ours/peer    quartiles  largest difference")
    results = []
    for length in arguments.lengths:
        tokens = random.integers(FIRST_TOKEN, arguments.vocabulary, (arguments.batch, length))
        results.append(measure(ours, peer, tokens, arguments.repeats))
        if not arguments.json:
            print(show(results[-1]), flush=True)
    if arguments.json:
        setting = {"onnxruntime": onnxruntime.__version__, "threads": arguments.threads, "batch": arguments.batch}
        print(json.dumps({**setting, "repeats": arguments.repeats, "results": [asdict(one) for one in results]}))


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def lengths(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def vocabulary(text: str) -> int:
    value = int(text)
    if value <= FIRST_TOKEN:
        raise argparse.ArgumentTypeError(f"must be above {FIRST_TOKEN}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=pathlib.Path, required=True, metavar="FILE", help="model.onnx of a bundle")
    parser.add_argument("--peer", type=pathlib.Path, required=True, metavar="FILE", help="the ONNX file beside it")
    parser.add_argument("--threads", type=count, default=2, metavar="N", help="threads of each (default: 2)")
    parser.add_argument(
        "--lengths", type=lengths, default=[16, 64, 128, 256], metavar="N,N", help="tokens (default: 16,64,128,256)"
    )
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="sequences at once (default: 1)")
    parser.add_argument("--repeats", type=count, default=30, metavar="N", help="rounds per length (default: 30)")
    parser.add_argument(
        "--vocabulary", type=vocabulary, default=1000, metavar="N", help="feed token ids below this (default: 1000)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    for path in (arguments.ours, arguments.peer):
        if not path.is_file():
            parser.error(f"{path} is not a file")
    try:
        bench(arguments)
    except BenchFailed as failure:
        print(f"bench_encoder.py: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
