"""The part of soak_serve.py about malformed requests: bodies that are nearly right, and broken HTTP."""

import concurrent.futures
import contextlib
import copy
import functools
import gzip
import http.client
import json
import pathlib
import random
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from serving import MODEL, PATIENCE, Server, Setup, Wrong, conforms, demand, demand_form, description, equal
from serving_models import PIPELINE, RANKER, bundle_of
from soaking import (
    CHAT,
    PROMPTS,
    check_answers,
    connect,
    head,
    is_idle,
    parsed,
    received,
    request,
    settled,
    warm_up,
)

REQUESTS = pathlib.Path(__file__).parent / "serving_requests.jsonl"
# Requests of the server that is asked may have so many bytes.
MOST_BYTES = 1 << 16
# Bundles that are served beside the decoder, and what they are compiled from.
BUNDLES = {"vectors": "fixtures/cases/sentence-default-prompt", "ranker": RANKER, "sd": PIPELINE}
# What the description has as an example is asked of these, and with these fields.
ASKED = {
    "/v1/embeddings": {"model": "vectors"},
    "/v1/rerank": {"model": "ranker"},
    "/v1/images/generations": {"model": "sd", "steps": 1, "size": None},
}
# What takes the place of a value.
NUMBERS = b"-1 0 0.5 1e999 -1e999 1e-999 NaN -Infinity 0x10 01 .5 4294967296 18446744073709551616".split()
WORDS = b'null true [] {} [[]] [null] [0,-1] [4294967295] [1,] \'\' "" {"5":1e39} {"-1":1} {"99999999999":1}'.split()
TEXTS = [
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff\xfe"',
    b'"\xed\xa0\x80"',
    b'"\xc0\xaf"',
    b'"\n"',
    b'["a", 1]',
    b'{"__proto__": 1}',
]
LONG = [
    b"9" * 400,
    b"1" + b"0" * 5000,
    b'"' + b"a" * 20000 + b'"',
    b'"' + b"\\\\" * 9000 + b'"',
    b"[" + b"0," * 9000 + b"0]",
]
DEEP = [b"[" * 100 + b"]" * 100, b"[" * 20000 + b"]" * 20000, b"[" * 30000, b'{"a":' * 5000 + b"1" + b"}" * 5000]
FORMS = [
    b'{"type": "json_object"}',
    b'{"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}',
    b'{"regex": "((a{1,999}){1,999}){1,999}"}',
    b'{"regex": "("}',
    b'{"grammar": "start: start"}',
    b'{"json": {"allOf": [{"$ref": "#/allOf/0"}]}}',
    b'{"json": {"type": "string", "minLength": 1e18}}',
    b'{"json": {"type": "array", "minItems": 999999999}}',
    b'{"json": {"enum": []}}',
    b'{"json": "{"}',
]
VALUES = [*NUMBERS, *WORDS, *TEXTS, *LONG, *DEEP, *FORMS]
# A string that stands for such a value in JSON until then.
MARK = "a value stands here"
JSON = "Content-Type: application/json"
# Lengths that no body has, and chunks that no length is.
LENGTHS = ["-1", "five", "+5", "", "9" * 20, "0x5", "48, 5", "18446744073709551615"]
CHUNKS = [b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"f" * 17 + b"\r\n{}", b"2\r\n{}", b"2\r\n{}x0\r\n"]
# Bytes that take another one's place.
BYTES = b'{}[]",:\\0-.eE+nt\x00\xff\x80 \n'


@dataclass
class Case:
    """A request, and whether its HTTP is in order."""

    name: str
    path: str
    raw: bytes
    body: bytes | None = None
    # The client says that it sends nothing more.
    shuts: bool = False

    @property
    def is_large(self) -> bool:
        """Whether it has, or says that it has, more bytes than may be."""
        told = re.search(rb"Content-Length: (\d+)\r", self.raw)
        return max(len(self.raw), int(told[1]) if told else 0) > MOST_BYTES


# Bodies


def resolved(value: dict) -> dict:
    """What a reference of the description stands for, or what is no reference."""
    while "$ref" in value:
        section, name = value["$ref"].split("/")[-2:]
        value = description()["components"][section][name]
    return value


def form(part: dict) -> str:
    """The name of the schema of a body or an answer in JSON."""
    return resolved(part)["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]


@functools.cache
def routes() -> dict[str, dict]:
    """What the description says of each path that takes a body."""
    return {path: methods["post"] for path, methods in description()["paths"].items() if "post" in methods}


@functools.cache
def valid_bodies() -> list[tuple[str, dict]]:
    """Paths, as the description has them, and bodies that are mostly right."""
    bodies = []
    for path, route in routes().items():
        example = route["requestBody"]["content"]["application/json"]["example"]
        bodies += [(path, {**example, **ASKED.get(path, {})})] * 10
    cases = [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]
    for case in cases:
        prompt = {"messages": CHAT} if case["route"] == "chat/completions" else {"prompt": "And"}
        bodies.append((f"/v1/{case['route']}", {"model": MODEL, **prompt, "max_tokens": 2, **case["fields"]}))
    return bodies


def places(value: object) -> Iterator[tuple[dict | list, str | int]]:
    """All places of values inside of a value: what holds it, and its key there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def with_value(body: dict, dice: random.Random) -> bytes:
    holder, key = dice.choice(list(places(body)))
    holder[key] = MARK
    return json.dumps(body).encode().replace(json.dumps(MARK).encode(), dice.choice(VALUES), 1)


def with_key(body: dict, dice: random.Random) -> bytes:
    """A key is gone, new, twice there, or another's."""
    holder, key = dice.choice([place for place in places(body) if isinstance(place[0], dict)])
    if dice.random() < 0.3:
        del holder[key]
    elif dice.random() < 0.5:
        holder[dice.choice(["", "x" * 9000, "\u0000", "model", "$ref", "n", "stream"])] = holder.pop(key)
    else:
        holder[MARK] = dice.choice([None, 1, "a", [], {}])
        return json.dumps(body).encode().replace(json.dumps(MARK).encode(), json.dumps(key).encode(), 1)
    return json.dumps(body).encode()


def with_list(body: dict, dice: random.Random) -> bytes:
    """A list of its values in place of an object."""
    whole = [body]
    holder, key = dice.choice([place for place in places(whole) if isinstance(place[0][place[1]], dict)])
    holder[key] = list(holder[key].values())
    return json.dumps(whole[0]).encode()


def cut_short(body: dict, dice: random.Random) -> bytes:
    whole = json.dumps(body).encode()
    return whole[: dice.randrange(len(whole))]


def with_other_bytes(body: dict, dice: random.Random) -> bytes:
    whole = bytearray(json.dumps(body, ensure_ascii=dice.random() < 0.5).encode())
    for _ in range(dice.choice([1, 1, 2, 8])):
        at = dice.randrange(len(whole))
        whole[at : at + dice.randrange(2)] = bytes([dice.choice(BYTES)])
    return bytes(whole)


def oversize(body: dict, dice: random.Random) -> bytes:
    """A request of more bytes than may be, as spaces or in a value."""
    if dice.random() < 0.5:
        return json.dumps(body).encode() + b" " * MOST_BYTES
    body[dice.choice(["prompt", "user", "input"])] = "And " * (MOST_BYTES // 3)
    return json.dumps(body).encode()


def no_object(_: dict, dice: random.Random) -> bytes:
    return dice.choice(
        [*VALUES, b"", b" ", b"\xef\xbb\xbf{}", b"\x00" * 64, json.dumps({"model": MODEL}).encode("utf-16")]
    )


CHANGES = (
    [with_value] * 8
    + [with_key] * 3
    + [with_list] * 3
    + [cut_short] * 3
    + [with_other_bytes] * 4
    + [oversize, no_object]
)


def called(path: str) -> str:
    return path.replace("{name}", "vectors")


def changed(i: int, seed: int) -> Case:
    dice = random.Random(f"{seed} {i}")
    path, body = dice.choice(valid_bodies())
    change = dice.choice(CHANGES)
    given = change(copy.deepcopy(body), dice)
    return Case(f"body {i} of seed {seed} ({change.__name__})", path, request(called(path), given), given)


# HTTP


def broken_bodies(path: str) -> Iterator[Case]:
    """Lengths, chunks and codings that aren't those of the body. The client says that nothing more comes."""
    body = json.dumps({"model": MODEL, "prompt": "And", "max_tokens": 1}).encode()

    def case(name: str, rest: bytes, *headers: str) -> Case:
        return Case(name, path, head(called(path), JSON, *headers) + rest, shuts=True)

    for length in [*LENGTHS, str(len(body) + 9), str(len(body) - 9)]:
        yield case(f"Content-Length {length!r}", body, f"Content-Length: {length}")
    yield case("two lengths", body, f"Content-Length: {len(body)}", f"Content-Length: {len(body) - 1}")
    for chunks in CHUNKS:
        yield case(f"chunks {chunks[:9]!r}", chunks, "Transfer-Encoding: chunked")
    packed = gzip.compress(body)
    yield case("packed by gzip", packed, "Content-Encoding: gzip", f"Content-Length: {len(packed)}")
    yield case("no body", b"")


def broken_heads(path: str) -> Iterator[Case]:
    """Requests whose first lines or headers aren't in order."""
    own = called(path)
    yield Case("no type", path, head(own, "Content-Length: 2") + b"{}")
    yield Case("a large header", path, head(own, JSON, f"X-Large: {'x' * (1 << 20)}"))
    yield Case("many headers", path, head(own, JSON, *(f"X-{i}: 1" for i in range(500))))
    yield Case("a header of bytes", path, head(own, JSON, "X-\x00\xff: \x01", "Content-Length: 2") + b"{}")
    yield Case("another version", path, head(own, JSON).replace(b"HTTP/1.1", b"HTTP/9.7"))
    yield Case("no version", path, f"POST {own}\r\n\r\n".encode())
    yield Case("another method", path, head(own, JSON, method="P\x00T"))
    yield Case("a long path", path, head(own + "?" + "x" * 100_000, JSON))
    yield Case("no HTTP", path, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), shuts=True)
    yield Case("spaces", path, b" \r\n" * 100, shuts=True)


def broken_http() -> Iterator[Case]:
    for path in routes():
        yield from broken_bodies(path)
        yield from broken_heads(path)


# Answers


def is_described(case: Case) -> bool:
    """Whether the body is JSON that the description allows."""

    def no_number(word: str) -> float:
        raise ValueError(word)

    try:
        value = json.loads(case.body.decode("utf-8"), parse_constant=no_number)
        return conforms(value, form(routes()[case.path]["requestBody"])) is None
    except (ValueError, RecursionError):
        return False


def ask(server: Server, case: Case) -> bytes:
    with contextlib.closing(connect(server)) as link:
        # The server may have refused it and gone by then.
        with contextlib.suppress(OSError):
            link.sendall(case.raw)
            if case.shuts:
                link.shutdown(socket.SHUT_WR)
        return received(link)


def judge(case: Case, raw: bytes) -> str:
    """The status of an answer, which must be a refusal where the request isn't in order."""
    if not raw and case.body is None:
        return "closed"
    try:
        status, _, text = parsed(raw)
    except (OSError, http.client.HTTPException) as error:
        raise Wrong(f"no answer: {type(error).__name__} {raw[:100]!r}") from error
    if status == 200:
        demand(case.body is not None and is_described(case), f"it is answered: {text[:200]}")
        demand('"server_error"' not in text, f"a stream failed: {text[-200:]}")
        return "200"
    demand(400 <= status < 500, f"status {status}: {text[:200]}")
    if text or case.body is not None:
        demand_form(json.loads(text), form(routes()[case.path]["responses"][str(status)]))
    demand(status != 413 or case.is_large, "status 413, but it isn't large")
    return str(status)


def check_stalled_body(server: Server) -> None:
    """A body that doesn't come is waited for, but not for ever."""
    path = "/v1/completions"
    with contextlib.closing(connect(server)) as link:
        link.sendall(head(path, JSON, "Content-Length: 100") + b'{"model"')
        status, _, text = parsed(received(link))
        equal("status of a stalled body", status, 408)
        demand_form(json.loads(text), "Error")


def judge_all(server: Server, cases: Iterable[Case]) -> tuple[Counter[str], dict[str, list[str]]]:
    """How many answers had which status, and what is wrong: by path and how the message begins."""
    counts, wrong = Counter(), {}
    for case in cases:
        try:
            counts[judge(case, ask(server, case))] += 1
        except (Wrong, ValueError, LookupError, OSError) as error:
            shown = case.raw if case.body is None else case.body
            told = f"{case.name} to {case.path}: {error}\n      {shown[:400]!r}"
            wrong.setdefault(f"{case.path} {str(error)[:20]}", []).append(told)
        demand(server.process.poll() is None, f"the server has ended at {case.name}: {''.join(server.said)[-500:]}")
    return counts, wrong


def check_bodies(setup: Setup, bodies: int, seed: int) -> str:
    """What isn't in order is refused, and the server lives on."""
    others = [bundle_of(setup, name, checkpoint) for name, checkpoint in BUNDLES.items()]
    with setup.serve(*others, "--max-request-bytes", str(MOST_BYTES)) as server:
        expected = server.text(PROMPTS[0], max_tokens=64, ignore_eos=True)
        before = warm_up(server)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stalled = pool.submit(check_stalled_body, server)
            counts, wrong = judge_all(server, chain(broken_http(), (changed(i, seed) for i in range(bodies))))
            stalled.result(PATIENCE)
        equal("the text afterwards", server.text(PROMPTS[0], max_tokens=64, ignore_eos=True), expected)
        server.until(lambda: is_idle(server), "end")
        check_answers(server)
        after = settled(server, before)
    demand(not wrong, "\n    ".join(["", *(f"{len(told)}, first {told[0]}" for told in wrong.values())]))
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{told}; before {before}; after {after}"
