#!/usr/bin/env python3
"""Check `dlc serve` with other people's clients: openai, langchain-openai, curl, Prometheus' parser, OpenAPI's validator.

    "$(scripts/pyenv.sh serve)" scripts/check_serve.py [--dlc FILE] [--only NAME]...

Compiles fixtures/tiny-llama, with a chat template and a draft, starts servers of it on free ports of this machine, and
asks them. The curl commands and the Python program of docs/serving.md run as they stand there, but for the port. Every
answer is compared with src/serve/openapi.json.

Exit status: 0 all as it should be, 1 a check failed, 2 bad usage, or a bundle that can't be compiled.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import functools
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# Nothing but the servers on this machine is asked, and not through a proxy.
os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", LANGSMITH_TRACING="false")

import jsonschema
import openai
import openapi_spec_validator
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "serving.md"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}And{% endif %}"
MODEL = "out"
CHAT = [{"role": "system", "content": "In the beginning"}, {"role": "user", "content": "God created the heaven"}]
# How long anything may take that doesn't measure time itself.
PATIENCE = 120


class Wrong(Exception):
    """What isn't as it should be."""


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def equal(of: str, found: object, expected: object) -> None:
    demand(found == expected, f"{of}: {found!r:.600}, not {expected!r:.600}")


@dataclass
class Setup:
    """The program, and the bundle that it serves."""

    dlc: pathlib.Path
    bundle: pathlib.Path
    folder: pathlib.Path

    def run(self, *arguments: str) -> str:
        done = subprocess.run([self.dlc, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
        demand(done.returncode == 0, f"dlc {' '.join(arguments)}: {done.stderr[-500:]}")
        return done.stdout

    def serve(self, *flags: str) -> "Server":
        return Server(self, flags)


@dataclass
class Server:
    """`dlc serve` on a free port, for as long as a `with` takes."""

    setup: Setup
    flags: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)

    def __enter__(self) -> "Server":
        command = [self.setup.dlc, "serve", f"{MODEL}={self.setup.bundle}", "--port", "0", *self.flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        threading.Thread(target=self.listen, daemon=True).start()
        self.until(lambda: self.address, "the address")
        self.port = int(self.address[1])
        self.until(lambda: self.get("/ready")[0] == 200, "readiness")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def listen(self) -> None:
        for line in self.process.stderr:
            self.said.append(line)

    @property
    def address(self) -> re.Match | None:
        return re.search(r"listening on http://127\.0\.0\.1:(\d+)", "".join(self.said))

    def until(self, holds: Callable[[], object], of: str) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            alive = self.process.poll() is None
            demand(alive and time.monotonic() < end, f"the server has no {of}: {''.join(self.said)[-500:]}")
            time.sleep(0.02)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, kind: type = openai.OpenAI, key: str = "none") -> openai.OpenAI:
        return kind(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of an answer. A body that is no text or bytes becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            given = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
            connection.request(method, path, given, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, names, answer.read().decode("utf-8")

    def get(self, path: str, key: str | None = None) -> tuple[int, dict[str, str], str]:
        return self.ask("GET", path, headers={"Authorization": f"Bearer {key}"} if key else None)

    def post(self, path: str, **fields: object) -> tuple[int, dict[str, str], str]:
        return self.ask("POST", path, {"model": MODEL, **fields})

    def text(self, prompt: str, **fields: object) -> str:
        """The text of a greedy completion."""
        status, _, text = self.post("/v1/completions", prompt=prompt, temperature=0, **fields)
        equal("status", status, 200)
        return json.loads(text)["choices"][0]["text"]

    def metrics(self) -> dict[str, float]:
        """Values by the name of the sample, all labels together."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[2]):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0) + sample.value
        return values

    def ends(self, within: float) -> int:
        """The exit code of a server that ends."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired as error:
            raise Wrong(f"the server still runs after {within} s") from error


def events(text: str) -> list[dict]:
    """The data of a stream that came to its end."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    equal("the last event", data[-1:], ["[DONE]"])
    return [json.loads(part) for part in data[:-1]]


@functools.cache
def description() -> dict:
    return json.loads((ROOT / "src/serve/openapi.json").read_text(encoding="utf-8"))


def conforms(value: object, schema: str) -> str | None:
    """What contradicts the description, if anything does."""
    validator = jsonschema.Draft202012Validator({**description(), "$ref": f"#/components/schemas/{schema}"})
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return error and f"{schema}: {error.json_path}: {error.message[:200]}"


def demand_form(value: object, schema: str) -> None:
    problem = conforms(value, schema)
    demand(problem is None, str(problem))


# Models, completions


def check_models(server: Server) -> str:
    client = server.client()
    equal("names", [model.id for model in client.models.list()], [MODEL])
    equal("name", client.models.retrieve(MODEL).id, MODEL)
    demand_form(json.loads(server.get("/v1/models")[2]), "Models")
    demand_form(json.loads(server.get(f"/v1/models/{MODEL}")[2]), "Model")
    equal("status of another", server.get("/v1/models/other")[0], 404)
    return MODEL


def check_completions(server: Server) -> str:
    client = server.client()
    asked = {"model": MODEL, "prompt": "In the beginning", "temperature": 0}
    whole = client.completions.create(**asked, max_tokens=24)
    equal("tokens", whole.usage.completion_tokens, 24)
    equal("finish_reason", whole.choices[0].finish_reason, "length")
    equal("tokens by default", client.completions.create(**asked).usage.completion_tokens, 16)
    parts = list(client.completions.create(**asked, max_tokens=24, stream=True))
    equal("streamed", "".join(part.choices[0].text for part in parts), whole.choices[0].text)
    equal("finish_reason of the last", parts[-1].choices[0].finish_reason, "length")
    echoed = client.completions.create(**asked, max_tokens=24, echo=True).choices[0].text
    equal("echoed", echoed, asked["prompt"] + whole.choices[0].text)
    two = client.completions.create(**asked, max_tokens=24, n=2)
    equal("two", [choice.text for choice in two.choices], [whole.choices[0].text] * 2)
    equal("tokens of two", two.usage.completion_tokens, 48)
    return f"{whole.choices[0].text!r}"


def check_same_as_run(server: Server) -> str:
    prompts = [line for line in (ROOT / "fixtures/prompts.txt").read_text(encoding="utf-8").splitlines() if line][:4]
    file = server.setup.folder / "prompts.txt"
    file.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    told = server.setup.run("run", str(server.setup.bundle), "--prompts", str(file), "--max-tokens", "32", "--json")
    for prompt, result in zip(prompts, json.loads(told), strict=True):
        equal("text", server.text(prompt, max_tokens=32), result["text"])
        tokens = server.text(result["prompt_tokens"], max_tokens=32)
        equal("text after tokens", tokens, result["text"])
    return f"{len(prompts)} prompts"


def check_logprobs(server: Server) -> str:
    client = server.client()
    asked = {"model": MODEL, "prompt": "And the LORD said", "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(**asked, logprobs=3)
    said = whole.choices[0].logprobs
    equal("tokens", "".join(said.tokens), whole.choices[0].text)
    for token, logprob, top in zip(said.tokens, said.token_logprobs, said.top_logprobs, strict=True):
        demand(token in top and max(top.values()) == logprob, f"{token!r} of {logprob} isn't the likeliest of {top}")
    for offset, token in zip(said.text_offset, said.tokens, strict=True):
        equal("text at its offset", whole.choices[0].text[offset : offset + len(token)], token)
    parts = list(client.completions.create(**asked, logprobs=3, stream=True))
    streamed = [token for part in parts if part.choices[0].logprobs for token in part.choices[0].logprobs.tokens]
    equal("tokens streamed", streamed, said.tokens)
    return f"{len(said.tokens)} tokens"


def check_logprobs_held_back(server: Server) -> str:
    """A stream has the logprobs of tokens whose text is held back, since a stop text may begin there."""
    asked = {"prompt": "And the LORD said", "temperature": 0, "max_tokens": 12, "logprobs": 0}
    whole = json.loads(server.post("/v1/completions", **asked)[2])["choices"][0]["logprobs"]["tokens"]
    stop = "".join(whole[2:5]) + "?"
    parts = events(server.post("/v1/completions", **asked, stop=stop, stream=True)[2])
    streamed = [token for part in parts for token in (part["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    equal("tokens streamed", streamed, whole)
    return f"{len(whole)} tokens"


def check_stops(server: Server) -> str:
    whole = server.text("In the beginning", max_tokens=24)
    word = whole.split()[4]
    before = whole[: whole.index(word)]
    for stop in (word, ["no such text", word]):
        answer = json.loads(
            server.post("/v1/completions", prompt="In the beginning", temperature=0, max_tokens=24, stop=stop)[2]
        )
        equal("text", answer["choices"][0]["text"], before)
        equal("finish_reason", answer["choices"][0]["finish_reason"], "stop")
        fields = {"prompt": "In the beginning", "temperature": 0, "max_tokens": 24, "stop": stop, "stream": True}
        parts = events(server.post("/v1/completions", **fields)[2])
        equal("text streamed", "".join(part["choices"][0]["text"] for part in parts), before)
        equal("finish_reason streamed", parts[-1]["choices"][0]["finish_reason"], "stop")
    return f"{before!r} before {word!r}"


def check_seeds(server: Server) -> str:
    def drawn(seed: int) -> str:
        asked = {"model": MODEL, "prompt": "And it came to pass", "temperature": 1, "max_tokens": 24, "seed": seed}
        return server.client().completions.create(**asked).choices[0].text

    first, again, other = drawn(7), drawn(7), drawn(8)
    equal("the same seed", again, first)
    demand(other != first, f"seeds 7 and 8 both give {first!r}")
    two = server.client().completions.create(
        model=MODEL, prompt="And it came to pass", temperature=1, max_tokens=24, seed=7, n=2
    )
    demand(two.choices[0].text != two.choices[1].text, "two texts of a seed are one")
    return f"{first!r}"


# Chats


def check_chats(server: Server) -> str:
    client = server.client()
    asked = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    equal("role", whole.choices[0].message.role, "assistant")
    equal("tokens", whole.usage.completion_tokens, 20)
    rendered = "In the beginning\nGod created the heaven\nAnd"
    equal("the text of the rendered chat", text, server.text(rendered, max_tokens=20))
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    equal("usage", parts[-1].usage, whole.usage)
    equal("choices beside the usage", parts[-1].choices, [])
    demand(all(part.usage is None for part in parts[:-1]), "an earlier part has usage")
    equal("role streamed", parts[0].choices[0].delta.role, "assistant")
    equal("streamed", "".join(part.choices[0].delta.content or "" for part in parts[:-1]), text)
    equal("finish_reason of the last", parts[-2].choices[0].finish_reason, "length")
    two = client.chat.completions.create(**asked, n=2, stream=True)
    texts = ["", ""]
    for part in two:
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    equal("two streamed", texts, [text] * 2)
    in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]
    of_parts = client.chat.completions.create(**{**asked, "messages": in_parts})
    equal("content in parts", of_parts.choices[0].message.content, text)
    return f"{text!r}"


def check_chat_logprobs(server: Server) -> str:
    asked = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    whole = server.client().chat.completions.create(**asked).choices[0]
    equal("tokens", "".join(entry.token for entry in whole.logprobs.content), whole.message.content)
    for entry in whole.logprobs.content:
        equal("likeliest", entry.top_logprobs[0].token, entry.token)
        equal("entries", len(entry.top_logprobs), 2)
        equal("bytes", bytes(entry.bytes).decode("utf-8"), entry.token)
    return f"{len(whole.logprobs.content)} tokens"


def check_async(server: Server) -> str:
    asked = {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 16}

    async def ask() -> tuple[list[str], str]:
        async with server.client(openai.AsyncOpenAI) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(3)))
            stream = await client.chat.completions.create(**asked, stream=True)
            parts = [part.choices[0].delta.content or "" async for part in stream]
            return [answer.choices[0].message.content for answer in answers], "".join(parts)

    texts, streamed = asyncio.run(ask())
    equal("texts", texts, [streamed] * 3)
    return "3 at once, 1 streamed"


def check_langchain(server: Server) -> str:
    options = {"model": MODEL, "base_url": f"{server.base}/v1", "api_key": "none", "temperature": 0, "max_tokens": 16}
    chat = ChatOpenAI(**options, max_retries=0, stream_usage=True)
    turns = [("system", CHAT[0]["content"]), ("human", CHAT[1]["content"])]
    whole = chat.invoke(turns)
    equal("tokens", whole.usage_metadata["output_tokens"], 16)
    parts = list(chat.stream(turns))
    equal("streamed", "".join(part.text for part in parts), whole.text)
    equal("usage streamed", sum(parts[1:], parts[0]).usage_metadata["output_tokens"], 16)
    return f"{whole.text!r}"


def check_company(server: Server) -> str:
    """8 greedy streams at once, each the text that it is alone."""
    prompts = [line for line in (ROOT / "fixtures/prompts.txt").read_text(encoding="utf-8").splitlines() if line][:8]
    alone = [server.text(prompt, max_tokens=64) for prompt in prompts]
    before = server.metrics()["dlc_batch_passes_total"]

    def streamed(prompt: str) -> str:
        asked = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 64, "stream": True}
        return "".join(part.choices[0].text for part in server.client().completions.create(**asked))

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        for prompt, text, expected in zip(prompts, pool.map(streamed, prompts), alone, strict=True):
            equal(f"after {prompt!r}", text, expected)
    passes = server.metrics()["dlc_batch_passes_total"] - before
    demand(passes > 0, "no pass was over several texts")
    return f"{len(prompts)} streams, {passes:.0f} passes in common"


# The documents


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def table(heading: str) -> set[str]:
    """What stands between backticks in the first cells of the tables below a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def check_curl(server: Server) -> str:
    commands = [command for block in blocks("sh") for command in re.split(r"\n\n+", block.strip())]
    demand(bool(commands), "docs/serving.md has no commands")
    for command in commands:
        command = command.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False)
        equal(f"exit status of {command}", done.returncode, 0)
        if "stream" in command:
            demand("".join(part["choices"][0]["text"] for part in events(done.stdout)) != "", "an empty text")
        else:
            demand_form(json.loads(done.stdout), "Chat")
    return f"{len(commands)} commands"


def check_program(server: Server) -> str:
    programs = blocks("python")
    demand(bool(programs), "docs/serving.md has no program")
    for program in programs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"), str(PAGE), "exec"), {})
        demand(printed.getvalue().strip() != "", "nothing is printed")
    return f"{len(programs)} program"


def check_fields_of_page(_: Server) -> str:
    schemas = description()["components"]["schemas"]
    known = {name for kind in ("Sampling", "CompletionRequest", "ChatRequest") for name in schemas[kind]["properties"]}
    named = {name.split(".")[0] for name in table("What is answered") if " " not in name}
    equal("fields that openapi.json lacks", named - known, set())
    routes = {path.replace("{name}", "NAME") for path in description()["paths"]}
    told = {name.split()[1] for name in table("What is answered") if " " in name}
    equal("routes", told, routes)
    return f"{len(named)} fields, {len(routes)} routes"


# The description


def check_description(server: Server) -> str:
    served = json.loads(server.get("/openapi.json")[2])
    demand(served == description(), "it isn't src/serve/openapi.json: build dlc again")
    openapi_spec_validator.validate(served)
    return f"{len(served['paths'])} routes, {len(served['components']['schemas'])} schemas"


LISTS = {"n": 2, "logit_bias": {"5": 1.5}, "stop": ["a", "b"], "stop_token_ids": [1]}
NUMBERS = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": -3, "min_tokens": 1}
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1}
IGNORED = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def turn(**fields: object) -> dict:
    return {"messages": [{"role": "user", "content": "And", **fields}]}


# Fields beside `max_tokens` and a prompt or a chat, and the field that the refusal names; None where they are taken.
COMPLETIONS: list[tuple[dict, str | None]] = [
    ({**LISTS, **NUMBERS, **PENALTIES, **IGNORED}, None),
    ({"best_of": 1, "suffix": "", "ignore_eos": True, "echo": True}, None),
    ({"prompt": ["And"]}, None),
    ({"prompt": [5, 6, 7]}, None),
    ({"prompt": [[5, 6, 7]]}, None),
    ({"prompt": ""}, None),
    ({"max_tokens": 0}, None),
    ({"logprobs": 20}, None),
    ({"anything": None, "stop": None, "n": None, "seed": None, "stream_options": None}, None),
    ({"anything": 1}, "anything"),
    ({"prompt": ["And", "Or"]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"best_of": 3, "n": 3, "suffix": "end"}, "suffix"),
    ({"n": 0}, "n"),
    ({"n": 33}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"seed": 1 << 63}, "seed"),
    ({"presence_penalty": 101}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"other": True}}, "stream_options"),
]
CHATS: list[tuple[dict, str | None]] = [
    ({**LISTS, **NUMBERS, **PENALTIES, **IGNORED}, None),
    ({"max_completion_tokens": 2}, None),
    ({"logprobs": True, "top_logprobs": 20}, None),
    ({"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}, None),
    ({"parallel_tool_calls": True, "modalities": ["text"], "functions": []}, None),
    ({"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False}, None),
    (turn(role="developer", name="me"), None),
    (turn(content=[{"type": "text", "text": "And"}]), None),
    ({"anything": 1}, "anything"),
    ({"messages": []}, "messages"),
    ({"messages": "And"}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    (turn(role="king"), "messages[0]"),
    (turn(content=[IMAGE]), "messages[0]"),
    (turn(content=5), "messages[0]"),
    ({"modalities": ["audio"]}, "modalities"),
]
# What the description can't say.
BEYOND: list[tuple[str, dict, str | None]] = [
    ("completions", {"prompt": [1 << 20]}, "prompt"),
    ("completions", {"max_tokens": 1 << 20}, "max_tokens"),
    ("completions", {"best_of": 3}, "best_of"),
    ("completions", {"echo": True, "logprobs": 1}, "echo"),
    ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("completions", {"logit_bias": {"100000": 1}}, "logit_bias"),
    ("completions", {"prompt": "And " * 600}, None),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"max_completion_tokens": 3}, "max_tokens"),
]


def check_refusal(status: int, text: str, expected: int, param: str | None) -> None:
    equal("status", status, expected)
    problem = json.loads(text)
    demand_form(problem, "Error")
    equal("param", problem["error"]["param"], param)


def check_kind(server: Server, kind: str, fields: dict, param: str | None) -> None:
    """An answer in the form that is described, or a refusal of a request that isn't."""
    chat = kind == "chat"
    body = {"model": MODEL, **({"messages": CHAT} if chat else {"prompt": "And"}), "max_tokens": 2, **fields}
    if "max_completion_tokens" in fields:
        del body["max_tokens"]
    path = "/v1/chat/completions" if chat else "/v1/completions"
    problem = conforms(body, "ChatRequest" if chat else "CompletionRequest")
    status, _, text = server.ask("POST", path, body)
    if param is not None:
        demand(problem is not None, "the description allows it")
        return check_refusal(status, text, 400, param)
    demand(status == 200, f"status {status}: {text[:200]}")
    demand(problem is None, f"the description forbids it: {problem}")
    demand_form(json.loads(text), "Chat" if chat else "Completion")
    for part in events(server.ask("POST", path, {**body, "stream": True})[2]):
        demand_form(part, "ChatChunk" if chat else "CompletionChunk")


def check_fields(server: Server) -> str:
    cases = [("completions", *case) for case in COMPLETIONS] + [("chat", *case) for case in CHATS]
    wrong = []
    for kind, fields, param in cases:
        try:
            check_kind(server, kind, fields, param)
        except (Wrong, ValueError, LookupError) as error:
            wrong.append(f"{kind} {json.dumps(fields)[:120]}: {error}")
    for kind, fields, param in BEYOND:
        chat = kind == "chat"
        body = {"max_tokens": 2, **({"messages": CHAT} if chat else {"prompt": "And"}), **fields}
        status, _, text = server.post("/v1/chat/completions" if chat else "/v1/completions", **body)
        try:
            check_refusal(status, text, 400, param)
        except (Wrong, ValueError, LookupError) as error:
            wrong.append(f"{kind} {json.dumps(fields)[:120]}: {error}")
    demand(not wrong, "\n    ".join(["", *wrong]))
    return f"{len(cases) + len(BEYOND)} requests"


def check_refusals(server: Server) -> str:
    client = server.client()
    for ask, expected in [
        (lambda: client.completions.create(model="other", prompt="And"), 404),
        (lambda: client.chat.completions.create(model="other", messages=CHAT), 404),
        (lambda: client.completions.create(model=MODEL, prompt="And", extra_body={"x": 1}), 400),
        (lambda: client.completions.create(model=MODEL, prompt="And" * (2 << 20)), 413),
    ]:
        try:
            ask()
            raise Wrong(f"no {expected}")
        except openai.APIStatusError as error:
            equal("status", error.status_code, expected)
            demand(bool(error.body["message"]), "the error has no message")
    for method, path, body, expected in [
        ("POST", "/v1/completions", "{", 400),
        ("POST", "/v1/completions", "[]", 400),
        ("POST", "/v1/completions", b"\xff", 400),
        ("POST", "/v1/completions", "", 400),
        ("POST", "/v1/completions", {"model": "other", "prompt": "And"}, 404),
        ("GET", "/v1/completions", None, 405),
        ("GET", "/v1/embeddings", None, 404),
        ("POST", "/v1/embeddings", {}, 404),
    ]:
        status, _, text = server.ask(method, path, body)
        equal(f"{method} {path} {str(body)[:20]}", status, expected)
        demand_form(json.loads(text), "Error")
    return "12 requests"


# Operation


def check_metrics(server: Server) -> str:
    status, headers, text = server.get("/metrics")
    equal("status", status, 200)
    demand(headers["content-type"].startswith("text/plain; version=0.0.4"), headers["content-type"])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    names = {name + "_total" if family.type == "counter" else name for name, family in families.items()}
    equal("names", names, table("Metrics"))
    for name, family in families.items():
        demand(bool(family.documentation) and bool(family.samples), f"{name} has no help or no samples")
        for sample in family.samples:
            demand(name == "dlc_answers" or sample.labels["model"] == MODEL, f"{name} has no model")
    values = server.metrics()
    equal("requests under way", (values["dlc_requests_waiting"], values["dlc_requests_running"]), (0, 0))
    for name in ("dlc_texts_total", "dlc_generated_tokens_total", "dlc_prompt_tokens_reused_total", "dlc_cache_tokens"):
        demand(values[name] > 0, f"{name} is 0")
    equal("times of texts", values["dlc_text_seconds_count"], values["dlc_texts_total"])
    demand(values["dlc_guessed_tokens_accepted_total"] > 0, "no guess was accepted")
    return f"{len(names)} names"


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
            status, _, text = server.get(path)
            equal(f"{path} without a key", status, 401)
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
    return f"{statuses.count(429)} of {len(statuses)} refused"


def check_waiting(setup: Setup) -> str:
    """Who hangs up while it waits leaves its place to another."""
    with setup.serve("--max-concurrent", "1", "--max-queue", "3") as server:
        # One of them is under way, two wait.
        with under_way(server, max_tokens=480, n=3, temperature=1):
            waiting = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            with contextlib.closing(waiting):
                waiting.request("POST", "/v1/completions", json.dumps({"model": MODEL, "prompt": "And", "max_tokens": 1}))
                server.until(lambda: server.metrics()["dlc_requests_waiting"] == 3, "third request that waits")
            time.sleep(0.1)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(server.post, "/v1/completions", prompt="And", max_tokens=1)
                time.sleep(0.1)
                demand(server.metrics()["dlc_requests_waiting"] >= 2, "the texts ended too soon for this check")
        equal("status", answer.result()[0], 200)
    return "1 place"


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


@contextlib.contextmanager
def under_way(server: Server, **fields: object) -> Iterator[http.client.HTTPResponse]:
    """A stream of which the first bytes came."""
    body = {"model": MODEL, "prompt": "In the beginning", "temperature": 0, "ignore_eos": True, "stream": True, **fields}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.first = answer.readline()
        yield answer


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


# Checks that share a server, in their order: the metrics are those of all before.
SHARED: dict[str, Callable[[Server], str]] = {
    "models": check_models,
    "completions": check_completions,
    "same as dlc run": check_same_as_run,
    "logprobs": check_logprobs,
    "logprobs held back": check_logprobs_held_back,
    "stop texts": check_stops,
    "seeds": check_seeds,
    "chats": check_chats,
    "chat logprobs": check_chat_logprobs,
    "async client": check_async,
    "langchain": check_langchain,
    "8 at once": check_company,
    "curl": check_curl,
    "program of the page": check_program,
    "fields of the page": check_fields_of_page,
    "description": check_description,
    "fields": check_fields,
    "refusals": check_refusals,
    "state": check_state,
    "hanging up": check_hanging_up,
    "metrics": check_metrics,
}
# Checks that start servers of their own.
APART: dict[str, Callable[[Setup], str]] = {
    "keys": check_keys,
    "queue": check_queue,
    "hanging up while waiting": check_waiting,
    "timeout": check_timeout,
    "stopping": check_stopping,
    "grace": check_grace,
    "idle connections": check_idle_end,
    "start": check_start,
}


def attempt(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"ok      {name}: {check()}", flush=True)
    except Exception as error:  # clients fail with any exception
        print(f"FAILED  {name}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        return False
    return True


def compile_bundle(dlc: pathlib.Path, folder: pathlib.Path) -> Setup:
    checkpoint = folder / "checkpoint"
    shutil.copytree(ROOT / "fixtures" / "tiny-llama", checkpoint)
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    setup = Setup(dlc, folder / "bundle", folder)
    flags = ("--no-cache", "--pass", "fit-prune:drop=4", "--profile", "ort", "-o", str(setup.bundle))
    setup.run("compile", str(checkpoint), *flags)
    return setup


def check_all(setup: Setup, only: list[str]) -> bool:
    def wanted(checks: dict) -> dict:
        return {name: check for name, check in checks.items() if not only or name in only}

    good = True
    if shared := wanted(SHARED):
        with setup.serve() as server:
            for name, check in shared.items():
                good &= attempt(name, lambda check=check: check(server))
    for name, check in wanted(APART).items():
        good &= attempt(name, lambda check=check: check(setup))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target" / "debug" / "dlc"
    parser.add_argument("--dlc", type=pathlib.Path, default=built, metavar="FILE", help="default: target/debug/dlc")
    names = [*SHARED, *APART]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="a check; may stand several times")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-serve-") as folder:
        try:
            setup = compile_bundle(arguments.dlc.resolve(), pathlib.Path(folder))
        except (OSError, Wrong) as error:
            print(f"check_serve.py: {error}", file=sys.stderr)
            return 2
        return 0 if check_all(setup, arguments.only or []) else 1


if __name__ == "__main__":
    sys.exit(main())
