#!/usr/bin/env python3
"""Check that a decoder bundle writes what llama.cpp writes from the same GGUF file.

    "$(scripts/pyenv.sh)" scripts/check_texts.py BUNDLE --theirs FILE... --ours FILE... [--nats X]

THEIRS is what scripts/write_llama_cpp.mjs printed, OURS what `dlc run BUNDLE --prompts ... --json` printed for the
same prompts; of several FILEs, one for each run, the first has the texts. llama.cpp rounds activations to 8 bits before it multiplies, so where two tokens are about as likely it
may take the other. Three things must hold:

  ids      BUNDLE/tokenizer.json makes the same ids of every prompt
  tokens   ONNX Runtime runs BUNDLE/model.onnx over llama.cpp's text: each of its tokens is the likeliest, or at most X
           nats behind it (default 1.0)
  text     dlc writes llama.cpp's tokens up to the first that isn't the likeliest

Prints a line per prompt, the median of the tokens per second of both programs over prompts and runs, and the median of
their ratios, with the smallest and the largest. Exit status: 0 all is well, 1 a check failed, 2 bad usage or input.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import tokenizers

NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


def logits(session: onnxruntime.InferenceSession, ids: list[int]) -> np.ndarray:
    """The logits behind each token of one text, without caches before it."""
    whole = np.array([ids], np.int64)
    inputs = {"input_ids": whole, "attention_mask": np.ones_like(whole), "position_ids": np.arange(len(ids))[None]}
    feeds = {}
    for entry in session.get_inputs():
        if entry.name in inputs:
            feeds[entry.name] = inputs[entry.name]
        else:
            _, heads, _, width = entry.shape
            feeds[entry.name] = np.zeros((1, heads, 0, width), NUMPY_TYPES[entry.type])
    return session.run(["logits"], feeds)[0][0].astype(np.float64)


def behind(scores: np.ndarray, token: int) -> float:
    """How many nats the token is behind the likeliest one."""
    return float(scores.max() - scores[token])


def shared(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def check(session, tokenizer, theirs: dict, ours: dict, nats: float) -> bool:
    prompt = tokenizer.encode(theirs["prompt"]).ids
    if prompt != theirs["ids"]:
        print(f"FAILED  {theirs['prompt']!r}: ids {prompt}, llama.cpp {theirs['ids']}")
        return False
    text = theirs["ids"] + theirs["written"]
    scores = logits(session, text)[len(prompt) - 1 : -1]
    margins = [behind(row, token) for row, token in zip(scores, theirs["written"])]
    first = next((at for at, margin in enumerate(margins) if margin > 0), len(margins))
    alike = shared(theirs["written"], ours["tokens"])
    passed = max(margins, default=0.0) <= nats and alike >= min(first, len(ours["tokens"]))
    others = sum(margin > 0 for margin in margins)
    print(
        f"{'ok     ' if passed else 'FAILED '} {theirs['prompt']!r}: {len(margins)} tokens, {others} not the likeliest, "
        f"at most {max(margins, default=0.0):.3f} nats behind; the first {alike} as dlc writes them"
    )
    return passed


def speeds_of(theirs: dict, ours: dict) -> tuple[float, float]:
    """Tokens per second of one prompt, dlc's first."""
    return ours["stats"]["tokens_per_second"], (len(theirs["written"]) - 1) / theirs["seconds"]


def describe_speeds(runs: list[tuple[list[dict], list[dict]]]) -> str:
    speeds = [speeds_of(*texts) for theirs, ours in runs for texts in zip(theirs, ours, strict=True)]
    ours, theirs = (statistics.median(column) for column in zip(*speeds, strict=True))
    ratios = [ours / theirs for ours, theirs in speeds]
    return (
        f"tokens/s, median of {len(speeds)} texts: dlc {ours:.1f}, llama.cpp {theirs:.1f}; "
        f"ratio {statistics.median(ratios):.2f}, between {min(ratios):.2f} and {max(ratios):.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--theirs", type=pathlib.Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--ours", type=pathlib.Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--nats", type=float, default=1.0)
    arguments = parser.parse_args()
    theirs = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in arguments.theirs]
    ours = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.ours]
    if {len(texts) for texts in theirs + ours} != {len(theirs[0])} or len(theirs) != len(ours):
        print("check_texts.py: the files of llama.cpp and of dlc aren't of the same runs and prompts", file=sys.stderr)
        return 2
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(arguments.bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    passed = [check(session, tokenizer, a, b, arguments.nats) for a, b in zip(theirs[0], ours[0], strict=True)]
    print(describe_speeds(list(zip(theirs, ours, strict=True))))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
