"""What soak_serve.py and its parts share: what a server's process holds, and clients that read and write as they like."""

import concurrent.futures
import http.client
import io
import json
import os
import pathlib
import re
import socket
import time
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from serving import MODEL, PATIENCE, ROOT, Server, demand, equal, events
from serving_forms import Find

PROMPTS = [line for line in (ROOT / "fixtures/prompts.txt").read_text(encoding="utf-8").splitlines() if line]
CHAT = [{"role": "user", "content": "In the beginning"}]
# What a process may hold beyond what it held before: a share of its memory, megabytes, files and threads.
SHARE, MEGABYTES, FILES, THREADS = 0.1, 8, 4, 4
# How long threads and connections that nobody needs may stay.
SETTLING = 45


@dataclass(frozen=True)
class Usage:
    """What a process holds: megabytes of memory that are no file's, open files, threads."""

    megabytes: float
    files: int
    threads: int

    @classmethod
    def of(cls, server: Server) -> "Usage":
        process = pathlib.Path("/proc") / str(server.process.pid)
        status = (process / "status").read_text(encoding="utf-8")

        def number(name: str) -> int:
            return int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])

        return cls(number("RssAnon") / 1024, len(os.listdir(process / "fd")), number("Threads"))

    def is_near(self, before: "Usage") -> bool:
        return (
            self.megabytes <= before.megabytes * (1 + SHARE) + MEGABYTES
            and self.files <= before.files + FILES
            and self.threads <= before.threads + THREADS
        )

    def __str__(self) -> str:
        return f"{self.megabytes:.1f} MB, {self.files} files, {self.threads} threads"


def settled(server: Server, before: Usage) -> Usage:
    """What is held once it is near what was held before."""
    end = time.monotonic() + SETTLING
    while not (now := Usage.of(server)).is_near(before):
        demand(time.monotonic() < end, f"the server holds {now}, and held {before}")
        time.sleep(0.5)
    return now


def rested(server: Server) -> Usage:
    """What is held once the threads that only requests need have ended."""
    before = Usage.of(server)
    end = time.monotonic() + SETTLING
    while time.monotonic() < end:
        time.sleep(12)
        now = Usage.of(server)
        if now.threads >= before.threads:
            return now
        before = now
    return before


def warm_up(server: Server) -> Usage:
    """Makes the server hold what it holds for good: all its places, and what schemas need."""
    asked = [greedy(prompt, 480) for prompt in PROMPTS[:8]] * 2
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for status, _, text in pool.map(lambda body: server.ask("POST", "/v1/completions", body), asked):
            demand_answer(status, text)
    structured = {"json": Find.model_json_schema()}
    demand_answer(*server.post("/v1/completions", prompt="God", structured_outputs=structured)[::2])
    return rested(server)


def is_idle(server: Server) -> bool:
    values = server.metrics()
    return values["dlc_requests_waiting"] == values["dlc_requests_running"] == 0


def check_answers(server: Server) -> None:
    """No answer had a status of 5xx, but for /ready while the model was loaded."""
    for family in text_string_to_metric_families(server.get("/metrics")[2]):
        for sample in family.samples:
            if sample.name == "dlc_answers_total" and sample.labels["route"] != "/ready":
                demand(int(sample.labels["status"]) < 500, f"{sample.value:.0f} answers of {sample.labels}")


def check_no_failures(server: Server) -> None:
    """That, and no text failed, which some that are asked for in vain do."""
    check_answers(server)
    equal("texts that failed", server.metrics()["dlc_texts_failed_total"], 0)


def greedy(prompt: str, tokens: int, **fields: object) -> dict:
    """The body of a greedy completion that has all its tokens."""
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return {**body, **fields}


def demand_answer(status: int, text: str) -> None:
    demand(status == 200, f"status {status}: {text[:400]}")


def texts_of(answer: str, streamed: bool, whole: bool = True) -> dict[int, str]:
    """The texts of a completion; those of a stream that broke off may be beginnings."""
    if not streamed:
        return {choice["index"]: choice["text"] for choice in json.loads(answer)["choices"]}
    came = answer.rpartition("\n\n")[0].splitlines()
    parts = events(answer) if whole else [json.loads(line[6:]) for line in came if line.startswith("data: {")]
    texts: dict[int, str] = {}
    for part in parts:
        for choice in part.get("choices", []):
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


# Connections


def connect(server: Server, buffer: int | None = None) -> socket.socket:
    """A connection, whose receive buffer may be bounded."""
    link = socket.socket()
    if buffer is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    link.settimeout(PATIENCE)
    link.connect(("127.0.0.1", server.port))
    return link


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def request(path: str, body: bytes) -> bytes:
    """The bytes of a request, after which the server closes the connection."""
    return head(path, "Content-Type: application/json", f"Content-Length: {len(body)}") + body


def received(link: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    raw = bytearray()
    try:
        while got := link.recv(1 << 16):
            raw += got
    except ConnectionError:
        pass
    return bytes(raw)


class Received:
    """Bytes of an answer, in place of the socket that http.client would read."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self.raw)


def parsed(raw: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer."""
    answer = http.client.HTTPResponse(Received(raw))
    answer.begin()
    names = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, names, answer.read().decode("utf-8")
