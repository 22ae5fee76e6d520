"""What check_serve.py and its parts share: a `dlc serve` of fixtures/tiny-llama, and what answers must be."""

import contextlib
import functools
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# Nothing but the servers on this machine is asked, and not through a proxy.
os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", LANGSMITH_TRACING="false")

import jsonschema
import openai
from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A template that has calls written as Hermes and Qwen write them.
TEMPLATE = """{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.
{% endif %}{% for m in messages %}{{ m['content'] or '' }}{% for call in m['tool_calls'] or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}And{% endif %}"""
MODEL = "out"
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
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()
        self.until(lambda: self.address, "the address")
        self.port = int(self.address[1])
        self.until(self.is_ready, "readiness")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def is_ready(self) -> bool:
        status, _, text = self.get("/ready")
        demand_form(json.loads(text), "Readiness")
        equal("ready", json.loads(text)["ready"], status == 200)
        return status == 200

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
        """Status, headers and text of an answer. A body that is no text or bytes becomes JSON. Empty headers aren't sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            given = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
            sent = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, given, {name: value for name, value in sent.items() if value})
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


def check_refusal(status: int, text: str, expected: int, param: str | None) -> None:
    equal("status", status, expected)
    problem = json.loads(text)
    demand_form(problem, "Error")
    equal("param", problem["error"]["param"], param)


@contextlib.contextmanager
def under_way(server: Server, **fields: object) -> Iterator[http.client.HTTPResponse]:
    """A stream of which the first bytes came."""
    body = {
        "model": MODEL,
        "prompt": "In the beginning",
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        **fields,
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.first = answer.readline()
        yield answer


def compile_bundle(dlc: pathlib.Path, folder: pathlib.Path, template: str = TEMPLATE) -> Setup:
    checkpoint = folder / "checkpoint"
    shutil.copytree(ROOT / "fixtures" / "tiny-llama", checkpoint)
    (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
    setup = Setup(dlc, folder / "bundle", folder)
    flags = ("--no-cache", "--pass", "fit-prune:drop=4", "--profile", "ort", "-o", str(setup.bundle))
    setup.run("compile", str(checkpoint), *flags)
    return setup
