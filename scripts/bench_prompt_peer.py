#!/usr/bin/env python3
"""Time to the first token of one bundle (profile `ort`) in dlc and in onnxruntime-genai, in alternation.

    "$(scripts/pyenv.sh)" scripts/bench_prompt_peer.py BUNDLE --dlc target/release/dlc
        [--lengths N...] [--threads N] [--repeats N]

Prompts are the built-in text of `dlc compare`, over and over, cut to N tokens. Loading isn't timed. dlc's time is that
of the prompt plus that of one token, since the prompt's last token is read with the first that is written. Every repeat
reads every prompt in each program, in a process of its own; ratios are those of one repeat, and their median counts.

Prints a Markdown table on stdout. Exit status: 0 done, 1 a program failed or first tokens differ, 2 bad usage or input.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from bench_decoding_peer import load, og
from check_compare import BUILT_IN_TEXT
from tokenizers import Tokenizer

THEIRS = "--measure-genai"


def genai_once(bundle, threads, tokens):
    """Seconds to the first token, and that token."""
    with tempfile.TemporaryDirectory(prefix="bench-prompt-") as scratch:
        model = load(bundle, "plain", threads, pathlib.Path(scratch))
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, batch_size=1, max_length=len(tokens) + 2)
        generator = og.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "token": int(generator.get_sequence(0)[len(tokens)])}


def ours_once(arguments, prompt):
    command = [arguments.dlc, "run", arguments.bundle, "--prompt", prompt, "--max-tokens", "1", "--json", "--quiet"]
    command += ["--threads", arguments.threads, "--no-draft", "--no-lookup", "--no-generation-config"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    run = json.loads(done.stdout)
    run = run[0] if isinstance(run, list) else run
    seconds = run["stats"]["prompt_seconds"] + 1 / run["stats"]["tokens_per_second"]
    return {"seconds": seconds, "token": run["tokens"][0]}, run["prompt_tokens"]


def theirs_once(arguments, tokens):
    command = [sys.executable, __file__, str(arguments.bundle), THEIRS, json.dumps(tokens), "--threads", str(arguments.threads)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def prompt_of(arguments, length):
    """The beginning of the repeated text that has so many tokens, or a few fewer."""
    text = BUILT_IN_TEXT.read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(arguments.bundle / "tokenizer.json"))
    text *= 1 + length // len(tokenizer.encode(text, add_special_tokens=False).ids)
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return text[: encoded.offsets[length - 1][1]]


def measure(arguments):
    print("| tokens | dlc s | genai s | dlc / genai | least and most |\n|---|---|---|---|---|")
    for length in arguments.lengths:
        prompt, pairs = prompt_of(arguments, length), []
        for _ in range(arguments.repeats):
            ours, tokens = ours_once(arguments, prompt)
            theirs = theirs_once(arguments, tokens)
            if ours["token"] != theirs["token"]:
                raise ValueError(f"{length} tokens: dlc goes on with {ours['token']}, genai with {theirs['token']}")
            pairs.append((ours["seconds"], theirs["seconds"]))
        ratios = [ours / theirs for ours, theirs in pairs]
        seconds = [statistics.median(column) for column in zip(*pairs)]
        ends = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"| {len(tokens)} | {seconds[0]:.2f} | {seconds[1]:.2f} | {statistics.median(ratios):.3f} | {ends} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path, metavar="BUNDLE")
    parser.add_argument("--dlc", default="dlc", help="the dlc program (default: the one on the path)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument(THEIRS, type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_genai:
        print(json.dumps(genai_once(arguments.bundle, arguments.threads, arguments.measure_genai)))
        return 0
    try:
        measure(arguments)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"bench_prompt_peer.py: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
