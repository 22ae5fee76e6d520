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
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

import openai
import openapi_spec_validator
from langchain_openai import ChatOpenAI
from prometheus_client.parser import text_string_to_metric_families

from serving import (
    MODEL,
    PATIENCE,
    ROOT,
    Server,
    Setup,
    Wrong,
    check_refusal,
    compile_bundle,
    conforms,
    demand,
    demand_form,
    description,
    equal,
    events,
)
from serving_forms import APART as FORMS_APART, SHARED as FORMS
from serving_models import APART as OTHERS, with_others
from serving_operation import APART as OPERATION, check_hanging_up, check_state

PAGE = ROOT / "docs" / "serving.md"
REQUESTS = pathlib.Path(__file__).parent / "serving_requests.jsonl"
CHAT = [{"role": "system", "content": "In the beginning"}, {"role": "user", "content": "God created the heaven"}]


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
    offsets = [offset for part in parts if part.choices[0].logprobs for offset in part.choices[0].logprobs.text_offset]
    equal("offsets streamed", offsets, said.text_offset)
    drawn = {**asked, "temperature": 1, "seed": 3}
    unlikely = 0
    for top in (0, 1):
        of_drawn = client.completions.create(**drawn, logprobs=top).choices[0].logprobs
        for token, logprob, told in zip(of_drawn.tokens, of_drawn.token_logprobs, of_drawn.top_logprobs, strict=True):
            equal(f"the drawn {token!r} among the likeliest", told.get(token), logprob)
            unlikely += len(told) > top
    demand(unlikely > 12, "no token was drawn that isn't the likeliest")
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


def answer_form(command: str) -> str:
    """The name of the schema that the description has for the answer to a curl command."""
    path = re.sub(r"(?<=/v2/models/)\w+", "{name}", re.search(r":\d+(/\S+)", command)[1])
    route = description()["paths"][path]["post"]
    schema = route["responses"]["200"]["content"]["application/json"]["schema"]
    return schema["$ref"].rsplit("/", 1)[1]


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
            demand_form(json.loads(done.stdout), answer_form(command))
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


def check_request(server: Server, case: dict) -> None:
    """An answer in the form that is described, or a refusal of a request that isn't."""
    chat = case["route"] == "chat/completions"
    body = {"model": MODEL, **({"messages": CHAT} if chat else {"prompt": "And"}), "max_tokens": 2, **case["fields"]}
    if "max_completion_tokens" in case["fields"] and "refused" not in case:
        del body["max_tokens"]
    path = f"/v1/{case['route']}"
    problem = conforms(body, "ChatRequest" if chat else "CompletionRequest")
    status, _, text = server.ask("POST", path, body)
    if "refused" in case:
        demand(problem is not None or case.get("undescribed", False), "the description allows it")
        check_refusal(status, text, 400, case["refused"])
        return
    demand(status == 200, f"status {status}: {text[:200]}")
    demand(problem is None, f"the description forbids it: {problem}")
    demand_form(json.loads(text), "Chat" if chat else "Completion")
    for part in events(server.ask("POST", path, {**body, "stream": True})[2]):
        demand_form(part, "ChatChunk" if chat else "CompletionChunk")


def check_requests(server: Server) -> str:
    """serving_requests.jsonl: fields beside a prompt or a chat and, of a request that is refused, the field that is named.
    `undescribed` ones contradict what openapi.json can't say."""
    cases = [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]
    wrong = []
    for case in cases:
        try:
            check_request(server, case)
        except (Wrong, ValueError, LookupError) as error:
            wrong.append(f"{json.dumps(case)[:160]}: {error}")
    demand(not wrong, "\n    ".join(["", *wrong]))
    return f"{len(cases)} requests"


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
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "And " * 600}, 400),
        ("POST", "/v1/completions", b"\xff", 400),
        ("POST", "/v1/completions", "", 400),
        ("POST", "/v1/completions", {"model": "other", "prompt": "And"}, 404),
        ("GET", "/v1/completions", None, 405),
        ("GET", "/v1/embeddings", None, 405),
        ("GET", "/v1/rerank", None, 405),
        ("GET", "/v1/other", None, 404),
    ]:
        status, _, text = server.ask(method, path, body)
        equal(f"{method} {path} {str(body)[:20]}", status, expected)
        demand_form(json.loads(text), "Error")
    for kind, expected in [
        ("", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonl", 415),
        ("Application/JSON; charset=utf-8", 200),
    ]:
        for path, prompt in (("/v1/completions", {"prompt": "And"}), ("/v1/chat/completions", {"messages": CHAT})):
            body = {"model": MODEL, "max_tokens": 1, **prompt}
            status, _, text = server.ask("POST", path, body, {"Content-Type": kind})
            equal(f"{path} as {kind!r}", status, expected)
            if expected != 200:
                demand_form(json.loads(text), "Error")
    return "24 requests"


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
    **FORMS,
    "8 at once": check_company,
    "program of the page": check_program,
    "fields of the page": check_fields_of_page,
    "description": check_description,
    "requests": check_requests,
    "refusals": check_refusals,
    "state": check_state,
    "hanging up": check_hanging_up,
    "metrics": check_metrics,
}


# Checks that start servers of their own.
APART: dict[str, Callable[[Setup], str]] = {**FORMS_APART, "curl": with_others(check_curl), **OTHERS, **OPERATION}


def attempt(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"ok      {name}: {check()}", flush=True)
    except Exception as error:  # clients fail with any exception
        print(f"FAILED  {name}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
        return False
    return True


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
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help="a check; may stand several times"
    )
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
