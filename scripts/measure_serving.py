#!/usr/bin/env python3
"""Throughput and latency of `dlc serve` with 1, 2, 4 and 8 clients, and whether their texts are what they are alone.

    python3 scripts/measure_serving.py BUNDLE [--dlc target/release/dlc] [--clients 1 2 4 8] [--tokens N] [--rounds N]
        [--threads N] [-- FLAG...]
    python3 scripts/measure_serving.py FILE.gguf --llama-server BIN ...

Starts the server with FLAGs. A client asks one prompt after the other of `dlc bench`'s suite, greedily, without an end of
text, and streams. Every number of clients asks as many requests, ROUNDS times 16, each with a number before it that no
other has; then one client asks them again, and must get the same texts. The rate is tokens per second from the first
request to the last token; times to the first token and between tokens are those that clients see. llama.cpp's server is
asked the same, and may write other texts in company. Prints a Markdown table.

Exit status: 0 done, 1 a text differs or a request failed, 2 bad usage.
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time

SUITE = pathlib.Path(__file__).parent.parent / "src" / "cli" / "bench" / "suite.jsonl"


class Server:
    """`dlc serve`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        command = [arguments.dlc, "serve", f"model={arguments.bundle}", "--port", "0", *arguments.flags]
        command += ["--threads", str(arguments.threads)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.port = 0
        for line in self.process.stderr:
            if found := re.search(r"listening on http://[^:]*:(\d+)", line):
                self.port = int(found[1])
            if "is ready" in line:
                break
            if "can't be served" in line:
                raise SystemExit(line)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def metric(self, name: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return float(re.search(rf'^{name}{{model="model"}} (.*)$', text, re.MULTILINE)[1])


class LlamaServer:
    """llama.cpp's, with a slot for each client."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        slots = max(arguments.clients)
        command = [arguments.llama_server, "-m", arguments.bundle, "--port", self.port, "-t", arguments.threads]
        command += ["--parallel", slots, "-c", 2048 * slots, *arguments.flags]
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.lives():
            time.sleep(0.1)

    def lives(self) -> bool:
        if self.process.poll() is not None:
            raise SystemExit("the server ended")
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def metric(self, name: str) -> float:
        return 0.0


class Seen:
    """What a client saw of a text."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.first = 0.0
        self.gaps: list[float] = []


def ask(port: int, prompt: str, tokens: int) -> Seen:
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0, "logprobs": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    asked = last = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(answer.read().decode())
    seen = Seen()
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        part = json.loads(line[6:])
        if "error" in part:
            raise RuntimeError(part["error"]["message"])
        choice = part["choices"][0]
        # llama.cpp's server sends each token by itself.
        new = choice["logprobs"]["tokens"] if choice.get("logprobs") else [choice["text"]] * bool(choice["text"])
        now = time.perf_counter()
        if not seen.tokens and new:
            seen.first = now - asked
        elif new:
            seen.gaps += [(now - last) / len(new)] * len(new)
        last = now
        seen.tokens += new
    return seen


def share(values: list[float], of: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(of * len(values)))] if values else 0.0


def measure(server: Server, prompts: list[str], clients: int, tokens: int) -> tuple[float, list[Seen]]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(prompts)):
        waiting.put(i)
    seen: list[Seen | None] = [None] * len(prompts)

    def client() -> None:
        while True:
            try:
                i = waiting.get_nowait()
            except queue.Empty:
                return
            seen[i] = ask(server.port, prompts[i], tokens)

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return time.perf_counter() - started, seen


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, and as `flags` those behind `--`, which are the server's."""
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:end])
    arguments.flags = given[end + 1 :]
    return arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--dlc", default="target/release/dlc")
    parser.add_argument("--llama-server")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parsed(parser)
    suite = [json.loads(line)["prompt"] for line in SUITE.read_text(encoding="utf-8").splitlines()]
    server = (LlamaServer if arguments.llama_server else Server)(arguments)
    rows, differing, total = [], 0, 0
    try:
        measure(server, suite[:2], 1, 8)
        base = 0.0
        for clients in arguments.clients:
            prompts = [f"{clients}.{turn} {prompt}" for turn in range(arguments.rounds) for prompt in suite]
            seconds, seen = measure(server, prompts, clients, arguments.tokens)
            if clients > 1:
                _, alone = measure(server, prompts, 1, arguments.tokens)
                differing += sum(a.tokens != b.tokens for a, b in zip(alone, seen))
                total += sum(len(each.tokens) for each in seen)
            rate = sum(len(each.tokens) for each in seen) / seconds
            base = base or rate
            firsts, gaps = [each.first for each in seen], [gap for each in seen for gap in each.gaps]
            times = [share(firsts, 0.5), share(firsts, 0.99), share(gaps, 0.5), share(gaps, 0.99)]
            rows.append([clients, f"{rate:.1f}", f"{rate / base:.2f}", *(f"{1000 * x:.0f}" for x in times)])
        steps, step_tokens = server.metric("dlc_batch_passes_total"), server.metric("dlc_batch_tokens_total")
    finally:
        server.close()
    print("| clients | tokens/s | over one client | first token, ms: p50 | p99 | between tokens, ms: p50 | p99 |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(f"\n{differing} texts of {total} tokens in company differ from the same alone; {step_tokens / max(steps, 1):.2f} tokens a pass in company")
    return 1 if differing and not arguments.llama_server else 0


if __name__ == "__main__":
    sys.exit(main())
