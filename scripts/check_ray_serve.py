#!/usr/bin/env python3
"""Check that examples/serving/ray_serve.py loses no request that can be asked again where replicas die.

    "$(scripts/pyenv.sh ray)" scripts/check_ray_serve.py [--dlc FILE] [--seconds S]

Two replicas serve fixtures/tiny-llama to clients that ask for whole and for streamed greedy texts. Under way, `dlc serve`
of one replica is killed, then the whole process of another. Every whole text must come, and be the one that it is alone.
A stream may end with an error, but only once its text has begun, and what came of it must be the text's beginning. In the
end there must be two replicas again, and no `dlc serve` must be left. Linux only.

Exit status: 0 all as it should be, 1 a check failed, 2 bad usage, or a bundle that can't be compiled.
"""

import argparse
import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter

os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", RAY_USAGE_STATS_ENABLED="0")

import aiohttp
import ray
from ray import serve

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLE = str(ROOT / "examples" / "serving")
sys.path.insert(0, EXAMPLE)

import ray_serve

CLIENTS = 6
TOKENS = 48
# How long anything may take that doesn't measure time itself.
PATIENCE = 120


class Wrong(Exception):
    """What isn't as it should be."""


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def servers(bundle: pathlib.Path) -> dict[int, int]:
    """The processes that serve the bundle, and the replica of each."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        if "serve" in words and f"model={bundle}" in words:
            found[int(folder.name)] = int(parent)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Clients:
    """Clients that ask one text after the other, and what became of them."""

    def __init__(self, session: aiohttp.ClientSession, base: str, prompts: list[str]) -> None:
        self.session, self.base, self.prompts = session, base, prompts
        self.texts: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stops = asyncio.Event()

    def ask(self, prompt: str, streams: bool) -> aiohttp.client._RequestContextManager:
        body = {"model": "model", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": streams}
        return self.session.post(f"{self.base}/v1/completions", json=body)

    async def whole(self, prompt: str) -> str:
        async with self.ask(prompt, streams=False) as answer:
            said = await answer.text()
            demand(answer.status == 200, f"status {answer.status}: {said[:300]}")
            return json.loads(said)["choices"][0]["text"]

    async def streamed(self, prompt: str) -> tuple[str, str]:
        """The text as far as it came, and how it ended."""
        text = ""
        async with self.ask(prompt, streams=True) as answer:
            demand(answer.status == 200, f"status {answer.status}")
            async for line in answer.content:
                data = line.decode("utf-8").strip().removeprefix("data: ")
                if data == "[DONE]":
                    return text, "done"
                if data:
                    part = json.loads(data)
                    if "error" in part:
                        return text, "broken off"
                    text += part["choices"][0]["text"]
        raise Wrong(f"a stream ended without a word after {text!r}")

    async def work(self, number: int) -> None:
        turn = number
        while not self.stops.is_set():
            prompt = self.prompts[turn % len(self.prompts)]
            turn += 1
            try:
                if turn % 2:
                    text, end = await self.whole(prompt), "whole"
                    demand(text == self.texts[prompt], f"after {prompt!r}: {text!r}, not {self.texts[prompt]!r}")
                else:
                    text, end = await self.streamed(prompt)
                    expected = self.texts[prompt]
                    demand(
                        text == expected if end == "done" else text and expected.startswith(text), f"{end}: {text!r}"
                    )
                self.counts[end] += 1
            except (Wrong, aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")


async def until(holds, of: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        demand(time.monotonic() < end, of)
        await asyncio.sleep(0.1)


def report(name: str, told: str) -> None:
    print(f"ok      {name}: {told}", flush=True)


async def check(base: str, bundle: pathlib.Path, seconds: float) -> None:
    prompts = [line for line in (ROOT / "fixtures/prompts.txt").read_text(encoding="utf-8").splitlines() if line][:8]
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        clients = Clients(session, base, prompts)
        for prompt in prompts:
            clients.texts[prompt] = await clients.whole(prompt)
        before = servers(bundle)
        demand(len(before) == 2 and len(set(before.values())) == 2, f"not two replicas: {before}")
        report("two replicas", f"{len(prompts)} texts alone")
        tasks = [asyncio.create_task(clients.work(number)) for number in range(CLIENTS)]
        for name in ("dlc serve", "replica"):
            await asyncio.sleep(seconds)
            alive = servers(bundle)
            done = clients.counts.total()
            victim, parent = next(iter(alive.items()))
            os.kill(victim if name == "dlc serve" else parent, signal.SIGKILL)
            gone, left = victim, set(alive) - {victim}
            await until(lambda gone=gone: gone not in servers(bundle), f"the killed {name} goes on")
            await until(
                lambda gone=gone, left=left: len(servers(bundle)) == 2 and left < set(servers(bundle)),
                f"no replica takes the place of the killed {name}",
            )
            demand(not clients.wrong, f"after a {name} was killed: {clients.wrong[:3]}")
            report(f"{name} killed", f"{clients.counts.total() - done} answers until there were two again")
        await asyncio.sleep(seconds)
        clients.stops.set()
        await asyncio.gather(*tasks)
        demand(not clients.wrong, f"{len(clients.wrong)} requests lost: {clients.wrong[:3]}")
        demand(clients.counts["whole"] > 0 and clients.counts["done"] > 0, f"{dict(clients.counts)}")
        report("no request lost", ", ".join(f"{count} {end}" for end, count in sorted(clients.counts.items())))


def compile_bundle(dlc: pathlib.Path, bundle: pathlib.Path) -> None:
    command = [dlc, "compile", ROOT / "fixtures" / "tiny-llama", "--profile", "ort", "-o", bundle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    demand(done.returncode == 0, f"dlc compile: {done.stderr[-500:]}")


def check_all(dlc: pathlib.Path, bundle: pathlib.Path, seconds: float) -> bool:
    of_replicas = {"env_vars": {"PYTHONPATH": EXAMPLE}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=of_replicas)
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = {"dlc": str(dlc), "bundle": str(bundle), "flags": "--threads 1"}
        serve.run(ray_serve.application(arguments), name="dlc")
        asyncio.run(check(f"http://127.0.0.1:{port}", bundle, seconds))
        serve.delete("dlc")
        asyncio.run(until(lambda: not servers(bundle), f"dlc serve is left: {servers(bundle)}"))
        report("end", "no dlc serve is left")
    except Exception as error:  # Ray fails with any exception
        print(f"FAILED  {type(error).__name__}: {str(error)[:2000]}", flush=True)
        return False
    finally:
        serve.shutdown()
        ray.shutdown()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target" / "debug" / "dlc"
    parser.add_argument(
        "--dlc", type=pathlib.Path, default=built, metavar="FILE", help=f"default: {built.relative_to(ROOT)}"
    )
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="between the deaths (default: 5)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-ray-serve-") as folder:
        bundle = pathlib.Path(folder) / "bundle"
        dlc = arguments.dlc.resolve()
        try:
            compile_bundle(dlc, bundle)
        except (OSError, Wrong) as error:
            print(f"check_ray_serve.py: {error}", file=sys.stderr)
            return 2
        return 0 if check_all(dlc, bundle, arguments.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
