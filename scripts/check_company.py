#!/usr/bin/env python3
"""Texts of `dlc serve` in company, and of conversations that go on there, against the same alone on servers that hold nothing.

    python3 scripts/check_company.py BUNDLE [--dlc target/release/dlc] [--clients 8] [--tokens N] [--prompts N] [--threads N]
        [-- FLAG...]

Asks N prompts of 20 to 130 words of docs/measurements.md, greedily, by many clients at once; then, as soon as they are
answered, the last ones with their answers and some words more. Then each kind alone, by one client, on a server of its own.

Prints how many texts differ. Exit status: 0 none, 1 some or a request failed, 2 bad usage.
"""

import argparse
import contextlib
import pathlib
import random
import sys

from measure_serving import Server, measure, parsed

WORDS = (pathlib.Path(__file__).parent.parent / "docs" / "measurements.md").read_text(encoding="utf-8").split()
LENGTHS = [20, 28, 33, 41, 47, 60, 90, 130]


def texts(server: Server, prompts: list[str], clients: int, tokens: int) -> list[str]:
    _, seen = measure(server, prompts, clients, tokens)
    return ["".join(each.tokens) for each in seen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--dlc", default="target/release/dlc")
    for name, default in [("clients", 8), ("tokens", 40), ("prompts", 24), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parsed(parser)

    draw = random.Random(3)
    starts = [draw.randrange(len(WORDS) - max(LENGTHS)) for _ in range(arguments.prompts)]
    prompts = [" ".join(WORDS[start : start + draw.choice(LENGTHS)]) for start in starts]
    clients, tokens, differing = arguments.clients, arguments.tokens, []
    with contextlib.closing(Server(arguments)) as server:
        together = texts(server, prompts, clients, tokens)
        # As many as the server still holds.
        later = [f"{prompt}{text} And then" for prompt, text in list(zip(prompts, together))[1 - clients :]]
        before = server.metric("dlc_prompt_tokens_reused_total")
        together_later = texts(server, later, clients, tokens)
        reused = server.metric("dlc_prompt_tokens_reused_total") - before
    for asked, found in [(prompts, together), (later, together_later)]:
        with contextlib.closing(Server(arguments)) as server:
            alone = texts(server, asked, 1, tokens)
        differing.append(sum(a != b for a, b in zip(alone, found)))
    print(f"{differing[0]} of {len(prompts)} texts and {differing[1]} of {len(later)} later ones differ; {reused:.0f} tokens were held")
    return 1 if any(differing) else 0


if __name__ == "__main__":
    sys.exit(main())
