#!/usr/bin/env python3
"""Drafts by dropped layers (SDFP): what they cost, how often the target believes them, and what that gains.

    scripts/measure_pruning.py CHECKPOINT [--dlc target/release/dlc] [--ways WAY...] [--prompts N] [--max-tokens N]
        [--draft-tokens N] [--threads N] [--scratch FOLDER] [--out rows.json]

CHECKPOINT is compiled with profile `ort` and each WAY, options of `fit-prune` (or a whole row of passes joined by `+`), one
bundle after the other in FOLDER, and measured by `dlc bench` on the first N of its prompts in every task: plainly and with
the draft in turn, a fixed number of proposed tokens, no lookups. The prediction is that of `dlc bench`, by the costs of
passes that it measures in the same run.

Prints a Markdown table. Exit status: 0 done, 1 a command failed or a text differs, 2 bad usage.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUITE = ROOT / "src" / "cli" / "bench" / "suite.jsonl"
WAYS = ["drop=4", "drop=6", "drop=8", "drop=10", "granularity=branch,drop=14", "granularity=branch,step=0.75"]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr[-1000:]}")
    return done.stdout


def prompts(folder, count):
    """The first prompts of each task of the suite."""
    cases = [json.loads(line) for line in SUITE.read_text(encoding="utf-8").splitlines()]
    tasks = dict.fromkeys(case["task"] for case in cases)
    chosen = [case for task in tasks for case in [case for case in cases if case["task"] == task][:count]]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": case["prompt"]}) + "\n" for case in chosen), encoding="utf-8")
    return path


def measure(arguments, way, folder, texts):
    bundle = folder / "bundle"
    passes = [part if ":" in part else f"fit-prune:{part}" for part in way.split("+")]
    flags = [flag for each in passes for flag in ("--pass", each)]
    compiled = ["compile", arguments.checkpoint, "--profile", "ort", *flags, "-o", bundle, "--force", "--quiet"]
    run(arguments.dlc, *compiled)
    bench = ["--prompts", texts, "--max-tokens", arguments.max_tokens, "--draft-tokens", arguments.draft_tokens]
    bench += ["--no-lookup", "--repeats", 1, "--threads", arguments.threads, "--json", "--quiet"]
    found = json.loads(run(arguments.dlc, "bench", bundle, *bench))
    return {
        "way": way,
        "step": found["costs"]["draft"],
        "acceptance": found["acceptance"],
        "tokens_per_round": found["tokens_per_round"],
        "predicted": found["predicted_speedup"],
        "speedup": found["speedup"],
        "different": found["different"],
        "load": os.getloadavg()[0],
    }


def table(rows):
    yield "| draft | its step, of the target's | accepted | tokens a round | predicted | measured |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| `{row['way']}` | {row['step']:.2f} | {100 * row['acceptance']:.0f}% | {row['tokens_per_round']:.2f} "
            f"| {row['predicted']:.2f}x | {row['speedup']:.2f}x |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--dlc", type=pathlib.Path, default=pathlib.Path("target/release/dlc"))
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--scratch", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    for name, default in [("prompts", 4), ("max-tokens", 24), ("draft-tokens", 4), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix="pruning-", dir=arguments.scratch) as folder:
            texts = prompts(pathlib.Path(folder), arguments.prompts)
            for way in arguments.ways:
                rows.append(measure(arguments, way, pathlib.Path(folder), texts))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    except (OSError, RuntimeError) as error:
        print(f"measure_pruning.py: {error}", file=sys.stderr)
        return 1
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))
    return 1 if any(row["different"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
