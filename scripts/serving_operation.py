"""The checks of check_serve.py about operation: state, keys, queues, times, signals."""

import concurrent.futures
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import openai

from serving import MODEL, PATIENCE, Server, Setup, Wrong, check_refusal, demand, demand_form, equal, events, under_way


def check_state(server: Server) -> str:
    equal("/health", server.get("/health")[::2], (200, "ok\n"))
    state = json.loads(server.get("/ready")[2])
    demand_form(state, "Readiness")
    equal("/ready", state, {"ready": True, "stopping": False, "models": {MODEL: "ready"}})
    return "ready"


def check_hanging_up(server: Server) -> str:
    """A text that nobody reads any more ends."""
    before = server.metrics()["dlc_texts_abandoned_total"]
    for stream in (True, False):
        body = {"model": MODEL, "prompt": "In the beginning", "max_tokens": 480, "ignore_eos": True, "stream": stream}
        body |= {"n": 4, "temperature": 1}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        if stream:
            connection.getresponse().read(200)
        else:
            server.until(lambda: server.metrics()["dlc_requests_running"] > 0, "request under way")
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        server.until(lambda: server.metrics()["dlc_requests_running"] == 0, "end of texts that nobody reads")
    abandoned = server.metrics()["dlc_texts_abandoned_total"] - before
    demand(abandoned > 0, "no text was abandoned")
    return f"{abandoned:.0f} of 8 texts"


def check_keys(setup: Setup) -> str:
    file = setup.folder / "keys.txt"
    file.write_text("# ours\nright\nolder\n", encoding="utf-8")
    with setup.serve("--api-key-file", str(file)) as server:
        for key in ("right", "older"):
            equal("models", len(server.client(key=key).models.list().data), 1)
        for key in ("wrong", "# ours"):
            try:
                server.client(key=key).completions.create(model=MODEL, prompt="And")
                raise Wrong(f"the key {key!r} is taken")
            except openai.AuthenticationError as error:
                equal("code", error.code, "invalid_api_key")
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/models/other"):
            status, headers, text = server.get(path)
            equal(f"{path} without a key", status, 401)
            equal("WWW-Authenticate", headers["www-authenticate"], "Bearer")
            demand_form(json.loads(text), "Error")
        for path in ("/health", "/ready"):
            equal(f"{path} without a key", server.get(path)[0], 200)
    return "2 keys"


def check_queue(setup: Setup) -> str:
    """Of more requests than may wait some are refused, and the others answered."""
    with setup.serve("--max-concurrent", "1", "--max-queue", "1") as server:
        fields = {"prompt": "In the beginning", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.post("/v1/completions", **fields), range(8)))
        statuses = [status for status, _, _ in answers]
        demand(set(statuses) == {200, 429}, f"statuses {statuses}")
        for status, headers, text in answers:
            if status == 429:
                demand(int(headers["retry-after"]) > 0, "no Retry-After")
                equal("code", json.loads(text)["error"]["code"], "queue_full")
        texts = {json.loads(text)["choices"][0]["text"] for status, _, text in answers if status == 200}
        equal("texts", len(texts), 1)
        # More than there will ever be places for: to ask again is no use.
        status, headers, text = server.post("/v1/completions", prompt="And", max_tokens=1, n=3)
        check_refusal(status, text, 400, "n")
        demand("retry-after" not in headers, "a request that is never taken has Retry-After")
        equal("status of 2 texts", server.post("/v1/completions", prompt="And", max_tokens=1, n=2)[0], 200)
    return f"{statuses.count(429)} of {len(statuses)} refused"


def check_waiting(setup: Setup) -> str:
    """Who hangs up while it waits leaves its place to another."""
    with setup.serve("--max-concurrent", "1", "--max-queue", "3") as server:
        # One of them is under way, two wait.
        with under_way(server, max_tokens=480, n=3, temperature=1):
            waiting = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            with contextlib.closing(waiting):
                body = json.dumps({"model": MODEL, "prompt": "And", "max_tokens": 1})
                waiting.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                server.until(lambda: server.metrics()["dlc_requests_waiting"] == 3, "third request that waits")
            server.until(lambda: server.metrics()["dlc_requests_waiting"] < 3, "place that is left")
            demand(server.metrics()["dlc_requests_waiting"] == 2, "the texts ended too soon for this check")
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(server.post, "/v1/completions", prompt="And", max_tokens=1)
                server.until(lambda: answer.done() or server.metrics()["dlc_requests_waiting"] == 3, "place")
        equal("status", answer.result()[0], 200)
    return "1 place"


def check_failed_model(setup: Setup) -> str:
    """One bundle that can't be loaded beside one that can."""
    absent = setup.folder / "absent"
    with setup.serve(f"broken={absent}") as server:
        _, _, text = server.get("/ready")
        states = {MODEL: "ready", "broken": "failed"}
        equal("/ready", json.loads(text), {"ready": True, "stopping": False, "models": states})
        status, headers, text = server.ask("POST", "/v1/completions", {"model": "broken", "prompt": "And"})
        check_refusal(status, text, 503, None)
        demand("retry-after" not in headers, "a model that failed has Retry-After")
        demand(str(absent) in json.loads(text)["error"]["message"], text)
        equal("status of the other", server.post("/v1/completions", prompt="And", max_tokens=1)[0], 200)
    return "1 of 2"


def check_timeout(setup: Setup) -> str:
    with setup.serve("--timeout", "0") as server:
        fields = {"prompt": "In the beginning", "max_tokens": 400, "ignore_eos": True, "n": 4}
        status, _, text = server.post("/v1/completions", **fields)
        check_refusal(status, text, 504, None)
        data = server.post("/v1/completions", **fields, stream=True)[2]
        last = [line for line in data.splitlines() if line.startswith("data: ")][-1]
        demand_form(json.loads(last.removeprefix("data: ")), "Error")
        server.until(lambda: server.metrics()["dlc_requests_running"] == 0, "end of the texts")
    return "whole and streamed"


def check_stopping(setup: Setup) -> str:
    """A stream that is under way at a signal is finished."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with setup.serve("--grace", "60") as server:
            expected = server.text("In the beginning", max_tokens=400, ignore_eos=True)
            with under_way(server, max_tokens=400) as answer:
                server.process.send_signal(number)
                parts = events((answer.first + answer.read()).decode("utf-8"))
            equal("text", "".join(part["choices"][0]["text"] for part in parts), expected)
            equal("exit code", server.ends(5), code)
            server.listener.join(PATIENCE)
            equal("the last line", server.said[-1], "stopped\n")
            demand(not any("interrupted" in line for line in server.said), f"{server.said}")
    return "exit codes 143, 130"


def check_grace(setup: Setup) -> str:
    """What isn't done in time is broken off with an error, and the server ends."""
    with setup.serve("--grace", "0") as server:
        with under_way(server, max_tokens=480, n=8) as answer:
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            text = (answer.first + answer.read()).decode("utf-8")
            code = server.ends(5)
            took = time.monotonic() - began
        equal("exit code", code, 143)
        last = [line for line in text.splitlines() if line.startswith("data: ")][-1]
        demand_form(json.loads(last.removeprefix("data: ")), "Error")
        demand(took < 4, f"the server ended after {took:.1f} s")
    return f"after {took:.1f} s"


def check_idle_end(setup: Setup) -> str:
    """Connections that ask nothing don't keep a server."""
    with setup.serve() as server:
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(idle):
            idle.request("GET", "/health")
            idle.getresponse().read()
            server.process.send_signal(signal.SIGTERM)
            equal("exit code", server.ends(3), 143)
    return "within 3 s"


def check_start(setup: Setup) -> str:
    """A port that is taken and a bundle that can't be served end the command with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, code, told in (
            ([str(setup.bundle), "--port", port], 2, "--port"),
            ([str(setup.folder / "absent"), "--port", "0"], 2, "absent"),
            ([f"a={setup.bundle}", f"a={setup.bundle}", "--port", "0"], 2, "NAME="),
        ):
            done = subprocess.run(
                [setup.dlc, "serve", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            equal(f"exit code of {arguments}", done.returncode, code)
            demand(told in done.stderr, f"{arguments}: {done.stderr[-300:]}")
    return "3 commands"


# Checks that start servers of their own.


APART: dict[str, Callable[[Setup], str]] = {
    "keys": check_keys,
    "queue": check_queue,
    "hanging up while waiting": check_waiting,
    "a model that fails": check_failed_model,
    "timeout": check_timeout,
    "stopping": check_stopping,
    "grace": check_grace,
    "idle connections": check_idle_end,
    "start": check_start,
}
