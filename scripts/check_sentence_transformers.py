#!/usr/bin/env python3
"""Check that Sentence Transformers with backend="onnx" makes of bundles the vectors that it makes of checkpoints.

    "$(scripts/pyenv.sh hf)" scripts/check_sentence_transformers.py BUNDLE=CHECKPOINT... [--results FILE]

The bundles are those of `dlc compile CHECKPOINT --deploy sentence-transformers`. The checkpoint runs by backend="torch".

Exit status: 0 all equal, 1 a difference, 2 bad usage.
"""

import argparse
import json
import os
import pathlib
import sys
from importlib.metadata import version

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from sentence_transformers import SentenceTransformer

from consumers import Consumer, close, write_rows

CONSUMER = Consumer("sentence-transformers", version("sentence-transformers"))
# The vocabulary of small checkpoints has the words w0 to w90.
TEXTS = ["A man is eating food.", "The girl carries a baby, and the baby sleeps.", "", "w1 w7 w30", "w90 w2 w11 w2 w55 w8 w8"]


def check(bundle: pathlib.Path, checkpoint: pathlib.Path) -> None:
    model = SentenceTransformer(str(bundle), backend="onnx", model_kwargs={"provider": "CPUExecutionProvider"})
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    close("a batch", model.encode(TEXTS), expected)
    for text, vector in zip(TEXTS, expected, strict=True):
        close(f"`{text}`", model.encode(text), vector)


def pair(text: str) -> tuple[pathlib.Path, pathlib.Path]:
    bundle, _, checkpoint = text.partition("=")
    if not checkpoint:
        raise argparse.ArgumentTypeError(f"{text} isn't BUNDLE=CHECKPOINT")
    return pathlib.Path(bundle), pathlib.Path(checkpoint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=pair, metavar="BUNDLE=CHECKPOINT", help="a bundle and what it was compiled from")
    parser.add_argument("--results", type=pathlib.Path, metavar="FILE", help="add a line of JSON for each bundle")
    arguments = parser.parse_args()
    passed = True
    for bundle, checkpoint in arguments.pairs:
        family = json.loads((bundle / "config.json").read_text(encoding="utf-8"))["model_type"]
        fault = None
        try:
            check(bundle, checkpoint)
        except Exception as error:  # the library fails with any exception
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            passed = False
        mark, told = ("ok     ", "equal") if fault is None else ("FAILED ", fault[:300])
        print(f"{mark} {CONSUMER.name} {CONSUMER.version}: {checkpoint.name}, {family}: {told}", flush=True)
        if arguments.results:
            write_rows([CONSUMER.row(family, checkpoint.name, "portable", "f32", fault)], arguments.results)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
