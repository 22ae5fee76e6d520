"""The parts of soak_serve.py with many clients: leavers, floods, slow readers, signals, weights that are cut short."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass

from serving import PATIENCE, Server, Setup, demand, demand_form, equal, under_way
from soaking import (
    PROMPTS,
    Usage,
    check_no_failures,
    connect,
    demand_answer,
    greedy,
    is_idle,
    parsed,
    received,
    request,
    settled,
    texts_of,
    warm_up,
)

AT_ONCE = 32
WAYS = ["in the body", "before the answer", "before the answer", "in the stream", "in the stream"]


# Leavers


def leave(server: Server, dice: random.Random) -> str:
    """Asks, and closes the connection before the answer is whole."""
    way = dice.choice(WAYS)
    streams = way == "in the stream" or dice.random() < 0.3
    fields = {"n": dice.choice([1, 1, 1, 2]), "temperature": dice.choice([0, 1]), "stream": streams}
    body = {**greedy(dice.choice(PROMPTS), dice.choice([1, 16, 120, 400])), **fields}
    path = "/v1/completions"
    if dice.random() < 0.3:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    whole = request(path, json.dumps(body).encode())
    with contextlib.closing(connect(server)) as link:
        if dice.random() < 0.5:
            # Closed by a reset.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way == "in the body":
            link.sendall(whole[: -dice.randrange(1, 100)])
            time.sleep(dice.uniform(0, 0.5))
        elif way == "before the answer":
            link.sendall(whole)
            time.sleep(dice.uniform(0, 0.5))
        else:
            link.sendall(whole)
            left = dice.randrange(1, 6000)
            while left > 0 and (got := link.recv(left)):
                left -= len(got)
    return way


def check_leavers(setup: Setup, clients: int, seed: int) -> str:
    """Nothing is left of clients that go away."""
    with setup.serve() as server:
        expected = server.text(PROMPTS[0], max_tokens=100, ignore_eos=True)
        before = warm_up(server)
        left_before = server.metrics()["dlc_texts_abandoned_total"]
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            dice = [random.Random(f"{seed} {i}") for i in range(clients)]
            ways = Counter(pool.map(lambda own: leave(server, own), dice))
        began = time.monotonic()
        server.until(lambda: is_idle(server), "end of texts that nobody reads")
        took = time.monotonic() - began
        equal("the text afterwards", server.text(PROMPTS[0], max_tokens=100, ignore_eos=True), expected)
        check_no_failures(server)
        after = settled(server, before)
        left = server.metrics()["dlc_texts_abandoned_total"] - left_before
        demand(left > 0, "no text was abandoned")
    ways_told = ", ".join(f"{count} {way}" for way, count in sorted(ways.items()))
    return f"{ways_told}; {left:.0f} texts abandoned; idle after {took:.2f} s; before {before}; after {after}"


# Floods


def check_flood(setup: Setup) -> str:
    """Of more requests than there are places some are refused; each of the others gets its text."""
    texts, tokens = 24, 96
    with setup.serve("--max-concurrent", "2", "--max-queue", "6") as server:
        asked = [greedy(PROMPTS[i % len(PROMPTS)], tokens, stream=i % 2 == 1) for i in range(texts)]
        alone = [server.text(body["prompt"], max_tokens=tokens, ignore_eos=True) for body in asked]
        together = threading.Barrier(texts)

        def ask(body: dict) -> tuple[int, dict[str, str], str]:
            together.wait(PATIENCE)
            return server.ask("POST", "/v1/completions", body)

        with concurrent.futures.ThreadPoolExecutor(texts) as pool:
            answers = list(pool.map(ask, asked))
        for body, expected, (status, headers, text) in zip(asked, alone, answers, strict=True):
            if status == 429:
                demand(int(headers.get("retry-after", 0)) > 0, "no Retry-After")
                demand_form(json.loads(text), "Error")
            else:
                demand_answer(status, text)
                equal("text", texts_of(text, body["stream"]), {0: expected})
        counts = Counter(status for status, _, _ in answers)
        demand(counts[429] > 0 and counts[200] >= 8, f"statuses {dict(counts)}")
        server.until(lambda: is_idle(server), "end")
        check_no_failures(server)
    return f"{texts} at once: {counts[200]} answered, {counts[429]} refused"


# Slow readers


def read_slowly(server: Server, body: dict, done: threading.Event) -> str:
    """Reads 4 bytes twice a second, and what is left once others are done."""
    with contextlib.closing(connect(server, buffer=2048)) as link:
        link.sendall(request("/v1/completions", json.dumps(body).encode()))
        raw = bytearray()
        while not done.is_set() and (got := link.recv(4)):
            raw += got
            done.wait(0.5)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        status, _, text = parsed(bytes(raw) + received(link))
        demand_answer(status, text)
        return text


def ask_meanwhile(server: Server, bodies: list[dict], alone: list[str], least: float) -> tuple[int, float, Usage]:
    """How many were answered, the longest time of one, and the most that was held."""
    end = time.monotonic() + least
    count, longest, most = 0, 0.0, Usage.of(server)
    while time.monotonic() < end or count < len(bodies):
        body, expected = bodies[count % len(bodies)], alone[count % len(bodies)]
        began = time.monotonic()
        status, _, text = server.ask("POST", "/v1/completions", body)
        longest = max(longest, time.monotonic() - began)
        demand_answer(status, text)
        equal("text beside slow readers", texts_of(text, body["stream"]), {0: expected})
        most = max(most, Usage.of(server), key=lambda usage: usage.megabytes)
        count += 1
    return count, longest, most


def check_slow_readers(setup: Setup, seconds: float = 30) -> str:
    """Slow readers get their texts, and keep nobody from getting others."""
    with setup.serve() as server:
        before = warm_up(server)
        slow = [greedy(prompt, 400, stream=True, logprobs=20) for prompt in PROMPTS[:6]]
        slow_alone = [server.text(body["prompt"], max_tokens=400, ignore_eos=True) for body in slow]
        usual = [greedy(PROMPTS[6 + i], 48, stream=i % 2 == 1) for i in range(6)]
        alone = [server.text(body["prompt"], max_tokens=48, ignore_eos=True) for body in usual]
        done = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            readers = [pool.submit(read_slowly, server, body, done) for body in slow]
            try:
                others = [pool.submit(ask_meanwhile, server, usual, alone, seconds) for _ in range(3)]
                told = [other.result() for other in others]
                running = server.metrics()["dlc_requests_running"]
            finally:
                done.set()
            for reader, expected in zip(readers, slow_alone, strict=True):
                equal("text of a slow reader", texts_of(reader.result(PATIENCE), True), {0: expected})
        most = max((usage for _, _, usage in told), key=lambda usage: usage.megabytes)
        demand(most.megabytes <= before.megabytes * 1.1 + 8, f"{most} with slow readers, {before} before")
        server.until(lambda: is_idle(server), "end")
        check_no_failures(server)
        after = settled(server, before)
    counted, longest = sum(count for count, _, _ in told), max(longest for _, longest, _ in told)
    return (
        f"{len(slow)} slow for {seconds:.0f} s; {counted} others answered, the slowest in {longest:.2f} s; {running:.0f} "
        f"texts under way at the end; before {before}; at most {most}; after {after}"
    )


# SIGTERM


def ending(answer: http.client.HTTPResponse, expected: str) -> str:
    """How a stream ended; what came of its texts must be right."""
    text = (answer.first + answer.read()).decode("utf-8")
    last = [line[6:] for line in text.splitlines() if line.startswith("data: ")][-1]
    whole = last == "[DONE]"
    if not whole:
        demand_form(json.loads(last), "Error")
    for got in texts_of(text, True, whole).values():
        demand(got == expected if whole else expected.startswith(got), f"{got!r:.300}, not {expected!r:.300}")
    return "whole" if whole else "ended by an error"


def stop_under_load(setup: Setup, grace: int, stalls: bool) -> str:
    """SIGTERM with 4 streams of two texts each in the middle, and a client that doesn't read."""
    with setup.serve("--grace", str(grace)) as server, contextlib.ExitStack() as stack:
        alone = [server.text(prompt, max_tokens=480, ignore_eos=True) for prompt in PROMPTS[:4]]
        if stalls:
            link = stack.enter_context(contextlib.closing(connect(server, buffer=2048)))
            body = greedy(PROMPTS[5], 400, stream=True, logprobs=20)
            link.sendall(request("/v1/completions", json.dumps(body).encode()))
        fields = {"max_tokens": 480, "n": 2 if stalls else 1}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            opened = [stack.enter_context(under_way(server, prompt=prompt, **fields)) for prompt in PROMPTS[:4]]
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            endings = Counter(pool.map(ending, opened, alone))
            code = server.ends(grace + 5)
        took = time.monotonic() - began
        equal("exit code", code, 143)
        server.listener.join(PATIENCE)
        equal("the last line", server.said[-1], "stopped\n")
    told = ", ".join(f"{count} {name}" for name, count in sorted(endings.items()))
    return f"--grace {grace}: {told}, exit code {code} after {took:.1f} s"


def check_sigterm(setup: Setup) -> str:
    """Streams end properly or with an error event, and the server in time."""
    return "; ".join([stop_under_load(setup, 60, stalls=False), stop_under_load(setup, 1, stalls=True)])


# Weights that are cut short


@dataclass
class Seen:
    """What clients got before the weights were cut short, and after that."""

    before: int = 0
    after: int = 0
    refused: int = 0
    broken: int = 0


def ask_until(
    server: Server, body: dict, expected: str, ends: threading.Event, cut: threading.Event, seen: Seen
) -> None:
    """Asks again and again; a text that is wrong, also one that breaks off, is a fault."""
    while not ends.is_set():
        after = cut.is_set()
        try:
            with contextlib.closing(connect(server)) as link:
                link.sendall(request("/v1/completions", json.dumps(body).encode()))
                raw = received(link)
            status, _, text = parsed(raw)
        except (OSError, http.client.HTTPException) as error:
            got = error.partial if isinstance(error, http.client.IncompleteRead) else b""
            for part in texts_of(got.decode("utf-8", "replace"), True, False).values() if got else ():
                demand(expected.startswith(part), f"a broken stream has {part!r:.300}, not {expected!r:.300}")
            seen.broken += 1
            time.sleep(0.1)
            continue
        if status != 200 or '"server_error"' in text:
            seen.refused += 1
            continue
        equal("text while weights are cut short", texts_of(text, body["stream"]), {0: expected})
        seen.after += after
        seen.before += not after


def check_truncated(setup: Setup, seconds: float = 20) -> str:
    """Half of a served bundle's weights go away: the texts are right, or there are none."""
    copy = setup.folder / "cut"
    shutil.copytree(setup.bundle, copy)
    weights = max((file for file in copy.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    with Setup(setup.dlc, copy, setup.folder).serve() as server:
        bodies = [greedy(prompt, 48, stream=i % 2 == 1) for i, prompt in enumerate(PROMPTS[:4])]
        alone = [server.text(body["prompt"], max_tokens=48, ignore_eos=True) for body in bodies]
        ends, cut, seen = threading.Event(), threading.Event(), Seen()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asking = [
                pool.submit(ask_until, server, *each, ends, cut, seen) for each in zip(bodies, alone, strict=True)
            ]
            time.sleep(3)
            os.truncate(weights, weights.stat().st_size // 2)
            cut.set()
            began = time.monotonic()
            while server.process.poll() is None and time.monotonic() < began + seconds:
                time.sleep(0.1)
            took = time.monotonic() - began
            time.sleep(1)
            ends.set()
            for each in asking:
                each.result(PATIENCE)
        code = server.process.poll()
        said = "".join(server.said).strip().splitlines()[-1:]
    demand(seen.before > 0, "no text came before the weights were cut short")
    state = f"lives after {took:.0f} s" if code is None else f"ended after {took:.1f} s with exit code {code}: {said}"
    return f"{weights.name} cut: the server {state}; no wrong text; {seen}"
