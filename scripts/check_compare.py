#!/usr/bin/env python3
"""Check the figures of `dlc compare A B` against numpy, on logits of onnxruntime.

    dlc compare A B --graph NAME --text FILE --length N --json > found.json
    "$(scripts/pyenv.sh)" scripts/check_compare.py A B --graph NAME --text FILE --length N --expect found.json

A and B are bundles of decoders in profile `portable` or `onnx`; B's graph NAME is judged by A's target. FILE is plain
text of fewer tokens than `dlc compare` reads. Every piece of N tokens runs at once on empty caches. Figures may differ by
1e-4 of themselves, or by 1e-7.

Prints a line per figure. Exit status: 0 all is well, 1 a figure differs.
"""

import argparse
import json
import os
import pathlib
import sys

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import tokenizers

RELATIVE, ABSOLUTE = 1e-4, 1e-7
# What `dlc compare` reads if it is given no text.
BUILT_IN_TEXT = pathlib.Path(__file__).resolve().parent.parent / "src/pipeline/comparison/text.txt"


def pieces(bundle, text, length):
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_truncation()
    whole = tokenizer.encode(text).ids
    own = tokenizer.encode(text, add_special_tokens=False).ids
    before = whole[: len(whole) - len(own)]
    room = length - len(before)
    cut = [before + own[at : at + room] for at in range(0, len(own), room)]
    return [piece for piece in cut if len(piece) > 1]


def read_pieces(bundle, file, length=256):
    return pieces(bundle, file.read_text(encoding="utf-8").removesuffix("\n"), length)


def open_session(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logits(session, piece):
    feeds = {}
    for port in session.get_inputs():
        if port.name == "input_ids":
            feeds[port.name] = np.array([piece], np.int64)
        elif port.name == "attention_mask":
            feeds[port.name] = np.ones((1, len(piece)), np.int64)
        elif port.name == "position_ids":
            feeds[port.name] = np.arange(len(piece), dtype=np.int64)[None]
        else:
            dtype = np.float16 if "float16" in port.type else np.float32
            feeds[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), dtype)
    return session.run(["logits"], feeds)[0][0]


def figures(one, other, texts):
    kl, agree, losses = [], [], [[], []]
    for piece in texts:
        p, q = (log_softmax(logits(session, piece)) for session in (one, other))
        kl.append((np.exp(p) * (p - q)).sum(axis=-1))
        agree.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        for loss, rows in zip(losses, (p, q)):
            loss.append(-rows[np.arange(len(piece) - 1), piece[1:]])
    kl = np.concatenate(kl)
    return {
        "answers": len(kl),
        "kl.mean": kl.mean(),
        "kl.p99": np.percentile(kl, 99),
        "kl.largest": kl.max(),
        "agreement": np.concatenate(agree).mean(),
        "a.perplexity": np.exp(np.concatenate(losses[0]).mean()),
        "b.perplexity": np.exp(np.concatenate(losses[1]).mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=pathlib.Path)
    parser.add_argument("b", type=pathlib.Path)
    parser.add_argument("--graph", default="target")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--expect", type=pathlib.Path, required=True)
    args = parser.parse_args()
    file = "model" if args.graph == "target" else args.graph
    sessions = [open_session(path) for path in (args.a / "model.onnx", args.b / f"{file}.onnx")]
    texts = read_pieces(args.a, args.text, args.length)
    found = json.loads(args.expect.read_text(encoding="utf-8"))
    wrong = False
    for name, expected in figures(*sessions, texts).items():
        value = found
        for key in name.split("."):
            value = value[key]
        differs = abs(value - expected) > max(RELATIVE * abs(expected), ABSOLUTE)
        wrong |= differs
        print(f"{name}: dlc {value:.9g}, numpy {expected:.9g}{'  DIFFERS' if differs else ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
