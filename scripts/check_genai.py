#!/usr/bin/env python3
"""Check that onnxruntime-genai says what dlc said, with a bundle of the `ort` profile as it is.

    dlc run BUNDLE --prompts FILE --json > expected.json
    "$(scripts/pyenv.sh)" scripts/check_genai.py BUNDLE --expect expected.json [--max-tokens N] [--ties K]

expected.json is an array of {"prompt": str, "prompt_tokens": [int], "tokens": [int], "text": str},
decoded greedily. Each prompt's prompt_tokens goes to onnxruntime-genai as it is (so how a prompt becomes
tokens is not in question), twice:

  plain  from a copy of the bundle whose genai_config.json has no `model.draft` and no `speculative`
         (the other files are hard links where the file system allows it, else copies)
  draft  from the bundle itself, where it has a `model.draft`

Prints one line per run and prompt: equal, or the first difference; for the draft also what
speculation did. The token that ends a text may be there or not. Where all tokens are equal, the
text that onnxruntime-genai makes of them is compared too.

A difference counts as a tie where the target's logits of the two tokens, after the tokens before
them, lie less than 1e-4 apart: then rounding decides between them. Up to K ties are allowed.

Exit status: 0 all equal (but for allowed ties), 1 a difference, a bundle that does not load, or a
draft that was never used, 2 bad usage or input.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from enum import Enum

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime_genai as og

CONFIG = "genai_config.json"
TIE = 1e-4


class BadInput(Exception):
    """An argument or file that can't be used, with the reason as its message."""


@dataclass(frozen=True)
class Case:
    """One prompt, and what dlc said to it."""

    prompt_tokens: list[int]
    tokens: list[int]
    text: str


class Outcome(Enum):
    EQUAL = "equal"
    TIE = "tie"
    DIFFERENT = "DIFFERENT"


def read_json(path: pathlib.Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error


def read_case(entry: object, place: str) -> Case:
    if not isinstance(entry, dict):
        raise BadInput(f"{place}: not an object")
    for key in ("prompt_tokens", "tokens"):
        ids = entry.get(key)
        if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
            raise BadInput(f"{place}: `{key}` is not a list of at least one token id")
    if not isinstance(entry.get("text"), str):
        raise BadInput(f"{place}: `text` is not a string")
    return Case(entry["prompt_tokens"], entry["tokens"], entry["text"])


def read_cases(path: pathlib.Path) -> list[Case]:
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise BadInput(f"{path}: not an array of at least one prompt")
    return [read_case(entry, f"{path}, prompt {number}") for number, entry in enumerate(entries, 1)]


def read_config(bundle: pathlib.Path) -> dict:
    config = read_json(bundle / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise BadInput(f"{bundle / CONFIG}: no `model` object")
    return config


def link_or_copy(source: str, destination: str) -> None:
    try:
        os.link(os.path.realpath(source), destination)
    except OSError:
        shutil.copyfile(source, destination)


def write_plain_copy(bundle: pathlib.Path, config: dict, destination: pathlib.Path) -> None:
    """The bundle without its draft, for a target that decodes alone."""
    shutil.copytree(bundle, destination, copy_function=link_or_copy, ignore=shutil.ignore_patterns(CONFIG))
    plain = {key: value for key, value in config.items() if key != "speculative"}
    plain["model"] = {key: value for key, value in config["model"].items() if key != "draft"}
    (destination / CONFIG).write_text(json.dumps(plain, indent=2), encoding="utf-8")


def new_generator(model: og.Model, prompt: list[int], max_tokens: int) -> og.Generator:
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, batch_size=1, max_length=len(prompt) + max_tokens)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    return generator


def decode_greedily(model: og.Model, prompt: list[int], max_tokens: int) -> tuple[list[int], dict]:
    """The new tokens, with an end token if one was reached, and the statistics of speculation."""
    generator = new_generator(model, prompt, max_tokens)
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()[len(prompt) :], generator.get_speculative_stats()


def logit_gap(model: og.Model, context: list[int], one: list[int], other: list[int]) -> float:
    """How far apart the target's best logits of two lists of tokens are after `context`.

    Measured with a generator of its own: asking for logits in the middle of a speculative round
    would end the round.
    """
    logits = new_generator(model, context, 1).get_logits().reshape(-1)
    return abs(float(logits[one].max()) - float(logits[other].max()))


def first_difference(expected: list[int], got: list[int], end_tokens: list[int]) -> int | None:
    for position, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return position
    shared = min(len(expected), len(got))
    rest = expected[shared:] + got[shared:]
    return None if not rest or (len(rest) == 1 and rest[0] in end_tokens) else shared


def judge_difference(
    model: og.Model, end_tokens: list[int], case: Case, expected: list[int], got: list[int], position: int
) -> tuple[Outcome, str]:
    """What to say of token lists whose first difference is at `position`. A list that has ended there
    stands for the tokens that end a text."""
    candidates = [tokens[position : position + 1] or end_tokens for tokens in (expected, got)]
    names = [str(tokens[position]) if position < len(tokens) else "the end" for tokens in (expected, got)]
    remark = f"at token {position}: expected {names[0]}, got {names[1]}"
    if not all(candidates):
        return Outcome.DIFFERENT, remark
    gap = logit_gap(model, case.prompt_tokens + expected[:position], *candidates)
    return Outcome.TIE if gap < TIE else Outcome.DIFFERENT, f"{remark}, logits {gap:.2g} apart"


def compare(
    model: og.Model, tokenizer: og.Tokenizer, end_tokens: list[int], case: Case, max_tokens: int | None
) -> tuple[Outcome, str, dict]:
    """One prompt: the outcome, a remark on it, and the statistics of speculation."""
    limit = max_tokens or len(case.tokens)
    expected = case.tokens[:limit]
    got, stats = decode_greedily(model, case.prompt_tokens, limit)
    position = first_difference(expected, got, end_tokens)
    if position is not None:
        return *judge_difference(model, end_tokens, case, expected, got, position), stats
    if expected == case.tokens and (text := tokenizer.decode(expected)) != case.text:
        return Outcome.DIFFERENT, f"in the text of equal tokens: expected {case.text!r}, got {text!r}", stats
    return Outcome.EQUAL, f"{len(expected)} tokens", stats


def speculation(stats: dict) -> str:
    return (
        f"{stats['rounds']} rounds, {stats['draft_tokens_accepted']} of {stats['draft_tokens_evaluated']} guesses "
        f"accepted ({stats['acceptance_rate']:.0%}), {stats['draft_forward_passes']} draft passes, "
        f"{stats['target_forward_passes']} target passes"
    )


def run(
    label: str, folder: pathlib.Path, end_tokens: list[int], cases: list[Case], max_tokens: int | None
) -> list[Outcome]:
    """Runs every prompt from one folder and prints a line for each."""
    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    outcomes = []
    rounds = 0
    for number, case in enumerate(cases, 1):
        outcome, remark, stats = compare(model, tokenizer, end_tokens, case, max_tokens)
        outcomes.append(outcome)
        rounds += stats["rounds"]
        suffix = f"; {speculation(stats)}" if label == "draft" else ""
        print(f"{label}  prompt {number}: {outcome.value}, {remark}{suffix}", flush=True)
    if label == "draft" and rounds == 0:
        print("draft  FAILED: the draft was never used")
        outcomes.append(Outcome.DIFFERENT)
    return outcomes


def check(bundle: pathlib.Path, cases: list[Case], max_tokens: int | None) -> list[Outcome]:
    config = read_config(bundle)
    end = config["model"].get("eos_token_id", [])
    end_tokens = end if isinstance(end, list) else [end]
    beside = bundle.resolve().parent  # hard links need the same file system
    scratch = beside if os.access(beside, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".check-genai-", dir=scratch) as folder:
        plain = pathlib.Path(folder, "plain")
        write_plain_copy(bundle, config, plain)
        outcomes = run("plain", plain, end_tokens, cases, max_tokens)
    if "draft" in config["model"]:
        outcomes += run("draft", bundle, end_tokens, cases, max_tokens)
    else:
        print("draft  not run: the bundle has no model.draft")
    return outcomes


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path, metavar="BUNDLE", help="a bundle of the `ort` profile")
    parser.add_argument(
        "--expect", type=pathlib.Path, required=True, metavar="FILE", help="what `dlc run --json` wrote"
    )
    parser.add_argument(
        "--max-tokens", type=count, metavar="N", help="how many new tokens to compare (default: as many as FILE has)"
    )
    parser.add_argument("--ties", type=int, default=0, metavar="K", help="how many ties are allowed (default: 0)")
    arguments = parser.parse_args()
    try:
        outcomes = check(arguments.bundle, read_cases(arguments.expect), arguments.max_tokens)
    except BadInput as error:
        print(f"check_genai.py: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # what onnxruntime-genai raises for whatever it refuses
        print(f"check_genai.py: onnxruntime-genai {og.__version__} refuses: {error}", file=sys.stderr)
        return 1
    ties = outcomes.count(Outcome.TIE)
    return 1 if Outcome.DIFFERENT in outcomes or ties > arguments.ties else 0


if __name__ == "__main__":
    sys.exit(main())
