"""Scores the calibration samples of a model in shards on a Ray cluster, and compiles with the scores.

    pip install ray
    python examples/score_ray.py MODEL OUT --shards 4 --pass fit-prune:samples=64

Every machine has `dlc` and finds MODEL, and a calibration file if the pass names one, under the same path.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import ray


@ray.remote
def score(model: str, flags: list[str], shard: str) -> bytes:
    """The file of one shard's scores."""
    command = ["dlc", "score", model, *flags, "--shard", shard, "-o", "-"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--pass", dest="passes", action="append", default=[], help="as for dlc score")
    args = parser.parse_args()

    flags = [word for name in args.passes or ["fit-prune"] for word in ("--pass", name)]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init()
    shards = [f"{number}/{args.shards}" for number in range(1, args.shards + 1)]
    files = ray.get([score.remote(args.model, flags, shard) for shard in shards])
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder, f"part-{number}.safetensors") for number in range(1, args.shards + 1)]
        for part, content in zip(parts, files):
            part.write_bytes(content)
        command = ["dlc", "compile", args.model, *flags, "-o", args.output, "--scores", *map(str, parts)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
