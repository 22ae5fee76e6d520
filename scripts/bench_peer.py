#!/usr/bin/env python3
"""Time onnxruntime-genai's model builder on a checkpoint: the peer of `dlc compile --profile ort`.

    scripts/bench_peer.py MODEL [-o OUT] [-p fp32] [-e cpu] [--python PYTHON]

Runs `python -m onnxruntime_genai.models.builder -i MODEL -o OUT -p fp32 -e cpu` in a process of its
own and prints {"tool", "version", "seconds", "peak_rss_mb"} as JSON on stdout. The seconds are wall
time and include starting Python and importing torch, as a user would wait for them; the peak is
the largest resident set of that process. The builder's own output is shown if it fails.

The builder needs torch and transformers, which are not in scripts/requirements.txt: torch from PyPI
brings its CUDA libraries along, 5.7 GB in all. Make an environment for it once, and pass its
interpreter as --python (default: the one that runs this script, which itself needs nothing):

    python3 -m venv target/peerenv
    target/peerenv/bin/pip install onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx-ir torch transformers
    scripts/bench_peer.py MODEL --python target/peerenv/bin/python

Unix only. Exit status: 0 done, 1 the builder failed, 2 bad usage.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

TOOL = "onnxruntime-genai"


@dataclass(frozen=True)
class Measurement:
    tool: str
    version: str
    seconds: float
    peak_rss_mb: float


class PeerFailed(Exception):
    """The peer did not do its work; its output is the message."""


def installed_version(python: str) -> str:
    """The version of the peer in `python`'s environment. Raises PeerFailed if it isn't there."""
    code = f"import importlib.metadata as m; print(m.version({TOOL!r}))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerFailed(f"{python} has no {TOOL} (see --help for how to install it): {error}") from error
    return done.stdout.strip()


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall seconds and peak resident MB of a command. Raises PeerFailed if it fails."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            text = output.read().decode(errors="replace")
            raise PeerFailed(f"{' '.join(command)} ended with status {process.returncode}:\n{text}")
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * bytes_per_unit / 1e6


def build(model: pathlib.Path, out: pathlib.Path, precision: str, provider: str, python: str) -> Measurement:
    version = installed_version(python)
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as cache:
        command = [python, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(model), "-o", str(out), "-p", precision, "-e", provider, "-c", cache]
        seconds, peak = measure(command, {"ORT_DISABLE_TELEMETRY": "1"} | os.environ | {"HF_HUB_OFFLINE": "1"})
    return Measurement(TOOL, version, round(seconds, 2), round(peak, 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="a checkpoint folder")
    parser.add_argument(
        "-o", "--out", type=pathlib.Path, metavar="OUT", help="keep what it builds here (default: measured and dropped)"
    )
    parser.add_argument("-p", "--precision", default="fp32", help="the builder's precision (default: fp32)")
    parser.add_argument("-e", "--provider", default="cpu", help="the builder's execution provider (default: cpu)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the peer's environment")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"{arguments.model} is not a checkpoint folder: it has no config.json")
    try:
        with tempfile.TemporaryDirectory(prefix="bench-peer-") as scratch:
            out = arguments.out or pathlib.Path(scratch, "out")
            result = build(arguments.model, out, arguments.precision, arguments.provider, arguments.python)
    except PeerFailed as failure:
        print(f"bench_peer.py: {failure}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
