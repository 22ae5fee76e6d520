#!/usr/bin/env python3
"""Load `dlc serve` with clients that leave, crowd, dawdle and err, and watch what its process holds meanwhile. Linux only.

    "$(scripts/pyenv.sh serve)" scripts/soak_serve.py [--dlc FILE] [--bundle DIR] [--only NAME]... [--clients N]
        [--bodies N] [--seed N] [--truncate] [--minutes M] [--pause S]

Serves a bundle, or else fixtures/tiny-llama with a chat template and a draft, on free ports of this machine. The parts:

  leavers       --clients of them close their connections in the body, before the answer or in the stream
  flood         more requests at once than there are places: 429 with Retry-After, or the text that it is alone
  slow readers  streams of small receive buffers, read at 8 bytes a second for 30 s, beside clients that read as usual
  bodies        --bodies changed requests, and broken HTTP: refused with an error in JSON, or answered if the change is
                allowed by openapi.json; where the HTTP is broken the connection may be closed, or the refusal empty
  sigterm       at SIGTERM streams end with their text or with an error, and the server within --grace and 5 s
  truncate      with --truncate alone: half of the weights' file goes away. What happens is told; a wrong text is a fault
  soak          with --minutes alone: 4 clients with varied requests, each PAUSE seconds, more or less, between two

Allowance: once a part is over, the process may hold 10% and 8 MB more memory that is no file's (RssAnon), 4 more files and
4 more threads than after a warm-up. It has 45 s for that.

The soak takes what is held every 10 s and fits a line to the memory of its last two thirds. It fails if the line rises by
more than 1 MB per 10 minutes and twice the standard deviation of the values about it. Shorter than 6 values, no line is
fitted.

Exit status: 0 all as it should be, 1 a check failed, 2 bad usage, or a bundle that can't be compiled.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from serving import ROOT, Server, Setup, Wrong, compile_bundle, demand, equal, events, under_way
from serving_forms import Find, check_arguments
from soaking import CHAT, PROMPTS, Usage, check_no_failures, demand_answer, greedy, is_idle, settled, texts_of, warm_up
from soaking_bodies import check_bodies
from soaking_loads import check_flood, check_leavers, check_sigterm, check_slow_readers, check_truncated

CLIENTS = 4
# Seconds between two values, and megabytes that memory may grow in 10 minutes.
EVERY, GROWTH = 10, 1.0
# Faults after which a soak ends early.
MOST_FAULTS = 20


# The soak


@dataclass
class Soak:
    """What is under way: texts as they are alone, counts of requests, faults."""

    server: Server
    alone: list[tuple[dict, str]]
    has_chats: bool
    ends: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def ask_greedy(soak: Soak, dice: random.Random) -> None:
    body, expected = dice.choice(soak.alone)
    streams = dice.random() < 0.5
    status, _, text = soak.server.ask("POST", "/v1/completions", {**body, "stream": streams})
    demand_answer(status, text)
    equal("text", texts_of(text, streams), {0: expected})


def ask_drawn(soak: Soak, dice: random.Random) -> None:
    fields = {
        "temperature": 1,
        "seed": dice.randrange(1000),
        "n": dice.choice([1, 2]),
        "logprobs": dice.choice([None, 3]),
    }
    body = greedy(f"{dice.randrange(10**6)} {dice.choice(PROMPTS)}", dice.randrange(1, 200), **fields)
    status, _, text = soak.server.ask("POST", "/v1/completions", body)
    demand_answer(status, text)
    equal("texts", len(texts_of(text, False)), fields["n"])


def ask_schema(soak: Soak, dice: random.Random) -> None:
    structured = {"json": {**Find.model_json_schema(), "description": str(dice.randrange(10**6))}}
    fields = {"prompt": dice.choice(PROMPTS), "max_tokens": 160, "structured_outputs": structured, "temperature": 1}
    status, _, text = soak.server.post("/v1/completions", **fields)
    demand_answer(status, text)
    check_arguments(texts_of(text, False)[0])


def ask_chat(soak: Soak, dice: random.Random) -> None:
    fields = {
        "messages": CHAT * dice.randrange(1, 6),
        "max_tokens": dice.randrange(1, 60),
        "stream": dice.random() < 0.5,
    }
    status, _, text = soak.server.post("/v1/chat/completions", **fields)
    demand_answer(status, text)
    demand(bool(events(text) if fields["stream"] else json.loads(text)["choices"]), "an empty answer")


def cancel(soak: Soak, dice: random.Random) -> None:
    with under_way(soak.server, prompt=dice.choice(PROMPTS), max_tokens=dice.randrange(50, 400)) as answer:
        answer.read(dice.randrange(1, 3000))


def client(soak: Soak, dice: random.Random, pause: float) -> None:
    """Asks in turn with pauses, until the end or too many faults."""
    kinds = {ask_greedy: 8, ask_drawn: 4, ask_schema: 2, ask_chat: 3 if soak.has_chats else 0, cancel: 3}
    while not soak.ends.wait(pause * dice.uniform(0.5, 1.5)):
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        try:
            kind(soak, dice)
        except Exception as error:  # whatever a client meets is told
            soak.faults.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            if len(soak.faults) >= MOST_FAULTS:
                soak.ends.set()
        soak.done[kind.__name__] += 1


def judge_growth(values: list[tuple[float, float]]) -> tuple[bool, str]:
    """Whether memory grows, of seconds and megabytes, and by how much."""
    if len(values) < 6:
        return False, f"{len(values)} values, too few for a line"
    times, held = zip(*values, strict=True)
    slope, intercept = statistics.linear_regression(times, held)
    spread = 2 * statistics.stdev(y - slope * x - intercept for x, y in values)
    window = times[-1] - times[0]
    rise, allowed = slope * window, GROWTH * window / 600
    told = (
        f"memory rises by {rise:.2f} MB in {window:.0f} s, spread {spread:.2f} MB, allowed {allowed:.2f} MB beyond it"
    )
    return rise - spread > allowed, told


def watch(soak: Soak, minutes: float) -> list[tuple[float, Usage]]:
    """Takes values, and prints at most 15 rows of a table."""
    began, taken, rows = time.monotonic(), [], 0
    row = max(1.0, minutes / 15) * 60
    print("\n| minute | MB | files | threads | requests |\n|---|---|---|---|---|", flush=True)
    while not soak.ends.wait(EVERY):
        seconds = time.monotonic() - began
        demand(soak.server.process.poll() is None, f"the server has ended: {''.join(soak.server.said)[-500:]}")
        usage = Usage.of(soak.server)
        taken.append((seconds, usage))
        if seconds >= row * (rows + 1):
            rows += 1
            cells = f"{usage.megabytes:.1f} | {usage.files} | {usage.threads} | {soak.done.total()}"
            print(f"| {seconds / 60:.0f} | {cells} |", flush=True)
        if seconds >= minutes * 60:
            return taken
    return taken


def begin(server: Server) -> Soak:
    alone = []
    for i, prompt in enumerate(PROMPTS):
        body = greedy(prompt, 8 << i % 5)
        alone.append((body, texts_of(server.ask("POST", "/v1/completions", body)[2], False)[0]))
    return Soak(server, alone, server.post("/v1/chat/completions", messages=CHAT, max_tokens=1)[0] == 200)


def check_soak(setup: Setup, minutes: float, pause: float, seed: int) -> str:
    """Memory, files and threads don't grow under a moderate load of all kinds."""
    with setup.serve() as server:
        soak = begin(server)
        before = warm_up(server)
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(client, soak, random.Random(f"{seed} {i}"), pause) for i in range(CLIENTS)]
            try:
                taken = watch(soak, minutes)
            finally:
                soak.ends.set()
            for each in clients:
                each.result()
        print(flush=True)
        grown, told = judge_growth([(seconds, usage.megabytes) for seconds, usage in taken[len(taken) // 3 :]])
        demand(not soak.faults and not grown, "\n    ".join([told, *soak.faults]))
        server.until(lambda: is_idle(server), "end")
        check_no_failures(server)
        # The line has judged the memory.
        after = settled(server, replace(before, megabytes=Usage.of(server).megabytes))
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(soak.done.items()))
    return f"{kinds}; {told}; before {before}; after {after}"


# The command


def parts(arguments: argparse.Namespace) -> dict[str, Callable[[Setup], str]]:
    found: dict[str, Callable[[Setup], str]] = {
        "leavers": lambda setup: check_leavers(setup, arguments.clients, arguments.seed),
        "flood": check_flood,
        "slow readers": check_slow_readers,
        "bodies": lambda setup: check_bodies(setup, arguments.bodies, arguments.seed),
        "sigterm": check_sigterm,
    }
    if arguments.truncate:
        found["truncate"] = check_truncated
    if arguments.minutes > 0:
        found["soak"] = lambda setup: check_soak(setup, arguments.minutes, arguments.pause, arguments.seed)
    return found


def attempt(name: str, check: Callable[[], str]) -> bool:
    began = time.monotonic()
    try:
        told = check()
    except Exception as error:  # clients fail with any exception
        print(f"FAILED  {name}: {type(error).__name__}: {str(error)[:8000]}", flush=True)
        return False
    print(f"ok      {name} ({time.monotonic() - began:.0f} s): {told}", flush=True)
    return True


def arguments_of_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target" / "debug" / "dlc"
    parser.add_argument("--dlc", type=pathlib.Path, default=built, metavar="FILE", help="default: target/debug/dlc")
    parser.add_argument("--bundle", type=pathlib.Path, metavar="DIR", help="default: fixtures/tiny-llama, compiled")
    parser.add_argument("--only", action="append", metavar="NAME", help="a part; may stand several times")
    parser.add_argument("--clients", type=int, default=1000, metavar="N", help="clients that leave; default: 1000")
    parser.add_argument("--bodies", type=int, default=1500, metavar="N", help="changed bodies; default: 1500")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn; default: 0")
    parser.add_argument("--truncate", action="store_true", help="cut the weights of a bundle that is served")
    parser.add_argument("--minutes", type=float, default=0, metavar="M", help="of the soak; default: 0, none")
    parser.add_argument("--pause", type=float, default=0.3, metavar="S", help="seconds between requests; default: 0.3")
    arguments = parser.parse_args()
    if unknown := set(arguments.only or []) - set(parts(arguments)):
        parser.error(f"no such part, or its flag is missing: {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    arguments = arguments_of_command()
    with tempfile.TemporaryDirectory(prefix="soak-serve-") as folder:
        dlc, place = arguments.dlc.resolve(), pathlib.Path(folder)
        try:
            given = arguments.bundle
            setup = Setup(dlc, given.resolve(), place) if given else compile_bundle(dlc, place)
        except (OSError, Wrong, subprocess.TimeoutExpired) as error:
            print(f"soak_serve.py: {error}", file=sys.stderr)
            return 2
        good = True
        for name, check in parts(arguments).items():
            if not arguments.only or name in arguments.only:
                good &= attempt(name, lambda check=check: check(setup))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
