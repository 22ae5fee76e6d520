#!/usr/bin/env python3
"""Time greedy decoding of one bundle (profile `ort`) by dlc and by onnxruntime-genai, in alternation.

    "$(scripts/pyenv.sh)" scripts/bench_decoding_peer.py BUNDLE --dlc target/release/dlc
        [--prompts FILE.jsonl] [--max-tokens N] [--threads N] [--repeats N]

Three ways, each by both programs: `plain`; `lookup`, n-grams of 2 in the text and no draft; and `draft`, where the
bundle has one, with 4 tokens a round. dlc's fourth way, `dlc default`, chooses its draft lengths and has both
sources. Every repeat decodes all prompts in every way in turn; the median of the repeats counts. Only decoding is
timed: neither loading nor the prompt. A program's first token costs onnxruntime-genai no pass, since it is read off
the prompt's pass, so that token isn't counted for it.

Prints {"way": {"dlc", "genai", "ratio"}} in tokens per second as JSON on stdout. Prompts: `{"prompt": ...}` a line;
default the built-in suite of `dlc bench`. Exit status: 0 done, 1 a program failed, 2 bad usage or input.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime_genai as og

SUITE = pathlib.Path(__file__).resolve().parent.parent / "src/cli/bench/suite.jsonl"
DLC = {
    "plain": ["--no-draft", "--no-lookup"],
    "lookup": ["--no-draft", "--lookup", "2"],
    "draft": ["--no-lookup", "--draft-tokens", "4"],
    "dlc default": [],
}


def genai_config(bundle: pathlib.Path, way: str, threads: int) -> dict:
    config = json.loads((bundle / "genai_config.json").read_text(encoding="utf-8"))
    if way != "draft":
        config["model"].pop("draft", None)
        config.pop("speculative", None)
    if way == "lookup":
        config["speculative"] = {"max_draft_tokens": 4, "min_adaptive_k": 0, "ngram_size": 2, "cooldown": False}
    for block in ("decoder", "draft"):
        if block in config["model"]:
            config["model"][block]["session_options"]["intra_op_num_threads"] = threads
    return config


def load(bundle: pathlib.Path, way: str, threads: int, scratch: pathlib.Path) -> og.Model:
    folder = scratch / way
    shutil.copytree(bundle, folder)
    (folder / "genai_config.json").write_text(json.dumps(genai_config(bundle, way, threads)), encoding="utf-8")
    return og.Model(str(folder))


def genai_rate(model: og.Model, prompts: list[list[int]], max_tokens: int) -> float:
    tokens = 0
    seconds = 0.0
    for prompt in prompts:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, batch_size=1, max_length=len(prompt) + max_tokens)
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        start = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        seconds += time.perf_counter() - start
        tokens += len(generator.get_sequence(0)) - len(prompt) - 1
    return tokens / seconds


def dlc_runs(arguments: argparse.Namespace, way: str) -> list[dict]:
    command = [arguments.dlc, "run", str(arguments.bundle), "--prompts", str(arguments.prompts), "--json"]
    command += ["--max-tokens", str(arguments.max_tokens), "--threads", str(arguments.threads), *DLC[way]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def dlc_rate(arguments: argparse.Namespace, way: str) -> float:
    runs = dlc_runs(arguments, way)
    seconds = sum(len(run["tokens"]) / run["stats"]["tokens_per_second"] for run in runs if run["tokens"])
    return sum(len(run["tokens"]) for run in runs) / seconds


def measure(arguments: argparse.Namespace) -> dict:
    prompts = [run["prompt_tokens"] for run in dlc_runs(arguments, "plain")]
    config = json.loads((arguments.bundle / "genai_config.json").read_text(encoding="utf-8"))
    ways = ["plain", "lookup", *(["draft"] if "draft" in config["model"] else [])]
    ours: dict[str, list[float]] = {way: [] for way in [*ways, "dlc default"]}
    theirs: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="bench-decoding-") as scratch:
        for _ in range(arguments.repeats):
            for way in ways:
                ours[way].append(dlc_rate(arguments, way))
                # One at a time: an idle model's threads may spin.
                model = load(arguments.bundle, way, arguments.threads, pathlib.Path(scratch))
                theirs[way].append(genai_rate(model, prompts, arguments.max_tokens))
                del model
                shutil.rmtree(pathlib.Path(scratch) / way)
            ours["dlc default"].append(dlc_rate(arguments, "dlc default"))
    result: dict[str, dict] = {}
    for way, rates in ours.items():
        result[way] = {"dlc": round(statistics.median(rates), 1)}
        if way in theirs:
            genai = statistics.median(theirs[way])
            result[way] |= {"genai": round(genai, 1), "ratio": round(statistics.median(rates) / genai, 3)}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path, metavar="BUNDLE")
    parser.add_argument("--dlc", default="dlc", help="the dlc program (default: the one on the path)")
    parser.add_argument("--prompts", type=pathlib.Path, default=SUITE, metavar="FILE.jsonl")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    if not (arguments.bundle / "genai_config.json").is_file():
        parser.error(f"{arguments.bundle} has no genai_config.json: compile it with --profile ort")
    try:
        print(json.dumps(measure(arguments), indent=2))
    except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
        print(f"bench_decoding_peer.py: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
