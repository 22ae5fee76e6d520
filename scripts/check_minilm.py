#!/usr/bin/env python3
"""Check that a bundle of all-MiniLM-L6-v2 still tells sentences apart, with other people's code.

    "$(scripts/pyenv.sh)" scripts/check_minilm.py BUNDLE --checkpoint DIR [--texts FILE] [--tolerance X] [--dlc DLC]

DIR is the checkpoint that BUNDLE was compiled from (scripts/fetch_minilm.sh). Its tokenizer.json makes
tokens of pairs of sentences; ONNX Runtime's Python package runs BUNDLE/model.onnx on all of them as one batch
padded on the right; the last hidden states are averaged over each sentence's tokens and normalised, as
the model's authors say. Then the cosine of every pair is looked at:

  kind      every similar pair is at least 0.35 above every unrelated pair
  recorded  it is what transformers 5.23 says, in f32; for the built-in pairs
  peer      it is what DIR/onnx/model.onnx says, if that is there (scripts/export_encoder_peer.py)
  dlc       `DLC run` makes the same vectors of the sentences, each entry within X, if DLC is given

`recorded` and `peer` allow X, 1e-4 without --tolerance; an f16 bundle needs 1e-3. FILE gives other pairs, one a
line: `similar` or `unrelated`, a tab, a sentence, a tab, a sentence.

Prints a line per pair. Exit status: 0 all is well, 1 a check failed, 2 bad usage or input.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import tokenizers

MARGIN = 0.35
OUTPUT = "last_hidden_state"
NUMPY_TYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
SIMILAR, UNRELATED = "similar", "unrelated"


class BadInput(Exception):
    """An argument or file that can't be used, with the reason as its message."""


class CheckFailed(Exception):
    """A model that does not run, with the reason as its message."""


@dataclass(frozen=True)
class Pair:
    kind: str
    one: str
    other: str
    recorded: float | None = None


PAIRS = [
    Pair(SIMILAR, "A man is playing a guitar on stage.", "A musician plays his guitar for an audience.", 0.69690),
    Pair(SIMILAR, "How do I reset my password?", "I forgot my password and want to set a new one.", 0.80661),
    Pair(SIMILAR, "The stock market fell sharply today.", "Share prices dropped a lot this afternoon.", 0.62062),
    Pair(SIMILAR, "A cat sleeps on the warm windowsill.", "The kitten is napping by the window.", 0.65391),
    Pair(
        SIMILAR,
        "What is the capital of France?",
        "Paris, the capital and largest city of France, lies on the Seine. For centuries it has been one of the "
        "world's great centres of finance, diplomacy, commerce, culture, fashion and food, and it is known for its "
        "museums and for the tower that was built for the fair of 1889.",
        0.63646,
    ),
    Pair(UNRELATED, "A man is playing a guitar on stage.", "Share prices dropped a lot this afternoon.", -0.07947),
    Pair(UNRELATED, "How do I reset my password?", "The kitten is napping by the window.", -0.03122),
    Pair(UNRELATED, "The stock market fell sharply today.", "Bake the bread for forty minutes.", 0.06015),
    Pair(UNRELATED, "What is the capital of France?", "I forgot my password and want to set a new one.", 0.03918),
    Pair(UNRELATED, "A cat sleeps on the warm windowsill.", "The treaty was signed by both governments.", 0.03333),
]


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_pairs(path: pathlib.Path) -> list[Pair]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != 3 or fields[0] not in (SIMILAR, UNRELATED) or not all(field.strip() for field in fields):
            raise BadInput(f"{path}, line {number}: not `similar` or `unrelated`, a tab, a text, a tab, a text")
        pairs.append(Pair(*fields))
    if {pair.kind for pair in pairs} != {SIMILAR, UNRELATED}:
        raise BadInput(f"{path}: needs at least one similar and one unrelated pair")
    return pairs


def read_tokenizer(checkpoint: pathlib.Path) -> tokenizers.Tokenizer:
    """The checkpoint's tokenizer, cutting texts where the authors do and padding them to the longest."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise BadInput(f"cannot read {checkpoint / 'tokenizer.json'}: {error}") from error
    settings = checkpoint / "sentence_bert_config.json"
    try:
        length = json.loads(settings.read_text(encoding="utf-8"))["max_seq_length"] if settings.is_file() else 256
        tokenizer.enable_truncation(length)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{settings}: no usable max_seq_length: {error}") from error
    tokenizer.enable_padding(direction="right")
    return tokenizer


def open_session(path: pathlib.Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        raise CheckFailed(f"{path} does not load: {one_line(error)}") from error


def embed(path: pathlib.Path, encodings: list[tokenizers.Encoding]) -> np.ndarray:
    """One vector of length 1 per text."""
    session = open_session(path)
    values = {
        "input_ids": [encoding.ids for encoding in encodings],
        "attention_mask": [encoding.attention_mask for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }
    feed = {}
    for entry in session.get_inputs():
        if entry.name not in values or entry.type not in NUMPY_TYPES:
            raise CheckFailed(f"{path} asks for {entry.name}, {entry.type}, which is no input of a sentence encoder")
        feed[entry.name] = np.array(values[entry.name], dtype=NUMPY_TYPES[entry.type])
    try:
        states = session.run([OUTPUT], feed)[0].astype(np.float32)
    except Exception as error:
        raise CheckFailed(f"{path} does not run: {one_line(error)}") from error
    if not np.isfinite(states).all():
        raise CheckFailed(f"{path}: {OUTPUT} is not finite")
    mask = np.array(values["attention_mask"], dtype=np.float32)
    if states.ndim != 3 or states.shape[:2] != mask.shape:
        raise CheckFailed(f"{path}: {OUTPUT} has shape {list(states.shape)} for inputs of {list(mask.shape)}")
    means = (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def cosines(path: pathlib.Path, tokenizer: tokenizers.Tokenizer, pairs: list[Pair]) -> list[float]:
    texts = [text for pair in pairs for text in (pair.one, pair.other)]
    vectors = embed(path, tokenizer.encode_batch(texts))
    return [float(one @ other) for one, other in zip(vectors[::2], vectors[1::2], strict=True)]


def shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def report(pairs: list[Pair], ours: list[float], peer: list[float] | None, tolerance: float) -> bool:
    """Prints a line per pair and what they come to; whether all is well."""
    passed = True
    print("verdict  kind         cosine  recorded      peer  texts")
    for number, (pair, cosine) in enumerate(zip(pairs, ours, strict=True)):
        wanted = [pair.recorded, peer[number] if peer else None]
        near = all(value is None or abs(cosine - value) <= tolerance for value in wanted)
        columns = "  ".join("       -" if value is None else f"{value:8.5f}" for value in wanted)
        verdict = "ok     " if near else "FAILED "
        texts = f"{shorten(pair.one)} | {shorten(pair.other)}"
        print(f"{verdict}  {pair.kind:9}  {cosine:8.5f}  {columns}  {texts}")
        passed &= near
    lowest = min(cosine for pair, cosine in zip(pairs, ours, strict=True) if pair.kind == SIMILAR)
    highest = max(cosine for pair, cosine in zip(pairs, ours, strict=True) if pair.kind == UNRELATED)
    apart = lowest - highest >= MARGIN
    print(
        f"{'ok     ' if apart else 'FAILED '}  similar pairs from {lowest:.5f}, unrelated ones up to {highest:.5f}: "
        f"{lowest - highest:.5f} apart, at least {MARGIN} wanted"
    )
    return passed and apart


def check_run(dlc: str, bundle: pathlib.Path, tokenizer: tokenizers.Tokenizer, pairs: list[Pair], tolerance: float) -> bool:
    """Prints how far the vectors of `dlc run` are from those here; whether that is near enough."""
    texts = [text for pair in pairs for text in (pair.one, pair.other)]
    expected = embed(bundle / "model.onnx", tokenizer.encode_batch(texts))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts)
        file.flush()
        command = [dlc, "run", str(bundle), "--texts", file.name, "--json", "--quiet"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise CheckFailed(f"dlc run ended with exit code {done.returncode}")
    found = np.array([entry["embedding"] for entry in json.loads(done.stdout)], np.float32)
    worst = float(np.abs(found - expected).max())
    print(f"{'ok     ' if worst <= tolerance else 'FAILED '}  {len(texts)} vectors of dlc run: at most {worst:.1e} from those here")
    return worst <= tolerance


def check(bundle: pathlib.Path, checkpoint: pathlib.Path, pairs: list[Pair], tolerance: float, dlc: str | None) -> bool:
    tokenizer = read_tokenizer(checkpoint)
    alike = dlc is None or check_run(dlc, bundle, tokenizer, pairs, tolerance)
    ours = cosines(bundle / "model.onnx", tokenizer, pairs)
    peer_path = checkpoint / "onnx" / "model.onnx"
    peer = cosines(peer_path, tokenizer, pairs) if peer_path.is_file() else None
    return report(pairs, ours, peer, tolerance) and alike


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path, metavar="BUNDLE", help="a folder with model.onnx")
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, metavar="DIR", help="the checkpoint's folder")
    parser.add_argument("--texts", type=pathlib.Path, metavar="FILE", help="pairs of sentences (default: built in)")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X", help="of a cosine (default: 1e-4)")
    parser.add_argument("--dlc", metavar="DLC", help="the dlc whose `run` makes the same vectors")
    arguments = parser.parse_args()
    if not (arguments.bundle / "model.onnx").is_file():
        parser.error(f"{arguments.bundle} is not a bundle: it has no model.onnx")
    try:
        pairs = read_pairs(arguments.texts) if arguments.texts else PAIRS
        passed = check(arguments.bundle, arguments.checkpoint, pairs, arguments.tolerance, arguments.dlc)
    except BadInput as error:
        print(f"check_minilm.py: {error}", file=sys.stderr)
        return 2
    except CheckFailed as failure:
        print(f"check_minilm.py: {failure}", file=sys.stderr)
        return 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
