"""What `check_serve.py` asks of models that continue no texts: encoders, cross-encoders, pipelines of pictures."""

import base64
import json
import struct
import zlib
from collections.abc import Callable

from serving import ROOT, Server, Setup, demand, demand_form, equal

RANKER = "fixtures/cases/cross-encoder"
PIPELINE = "fixtures/pipelines/sd15"


def bundle_of(setup: Setup, name: str, checkpoint: str) -> str:
    """A bundle, compiled by the first check that needs it, as `dlc serve` is given it."""
    bundle = setup.folder / name
    if not bundle.exists():
        setup.run("compile", checkpoint, "--profile", "ort", "-o", str(bundle), "--quiet")
    return f"{name}={bundle}"


def with_others(check: Callable[[Server], str]) -> Callable[[Setup], str]:
    """A check on a server that has the models too that docs/serving.md asks beside `out`."""

    def start_and_check(setup: Setup) -> str:
        with setup.serve(bundle_of(setup, "ranker", RANKER), bundle_of(setup, "sd", PIPELINE)) as server:
            return check(server)

    return start_and_check


def check_embeddings(setup: Setup) -> str:
    """Vectors of an encoder beside the decoder, as numbers and as bytes, against those of `dlc run`."""
    served = bundle_of(setup, "vectors", "fixtures/cases/sentence-default-prompt")
    bundle = setup.folder / "vectors"
    texts = ["w1 w7 w30", "w90 w2 w11"]
    arguments = [part for text in texts for part in ("--text", text)]
    expected = [entry["embedding"] for entry in json.loads(setup.run("run", str(bundle), "--json", *arguments))]
    with setup.serve(served) as server:
        client = server.client()
        for encoding in ("base64", "float"):
            found = client.embeddings.create(model="vectors", input=texts, encoding_format=encoding)
            for each, vector in zip(found.data, expected, strict=True):
                numbers = each.embedding
                if isinstance(numbers, str):
                    raw = base64.b64decode(numbers)
                    numbers = list(struct.unpack(f"<{len(raw) // 4}f", raw))
                demand(len(numbers) == len(vector), f"{encoding}: {len(numbers)} numbers, not {len(vector)}")
                demand(max(abs(x - y) for x, y in zip(numbers, vector)) < 1e-6, f"{encoding}: other numbers")
    return f"{len(texts)} vectors of {len(expected[0])} numbers"


def check_rerank(server: Server) -> str:
    """Scores are those of Sentence Transformers, of pairs that are too long too."""
    cases = json.loads((ROOT / RANKER / "golden.json").read_text(encoding="utf-8"))
    for case in cases:
        body = {"model": "ranker", "query": case["query"], "documents": case["texts"], "return_documents": True}
        status, _, text = server.ask("POST", "/v1/rerank", body)
        equal("status", status, 200)
        answer = json.loads(text)
        demand_form(answer, "Ranking")
        equal("tokens", answer["usage"]["total_tokens"], sum(case["tokens"]))
        scores = [result["relevance_score"] for result in answer["results"]]
        equal("order", scores, sorted(scores, reverse=True))
        for result in answer["results"]:
            at = result["index"]
            equal("document", result["document"]["text"], case["texts"][at])
            demand(abs(result["relevance_score"] - case["scores"][at]) < 1e-5, f"{result}, not {case['scores'][at]}")
    body = {"model": "ranker", "query": "w1", "documents": [{"text": "w2"}, "w3", "w4"], "top_n": 2}
    equal("top_n", len(json.loads(server.ask("POST", "/v1/rerank", body)[2])["results"]), 2)
    return f"{len(cases)} queries"


def pixels(png: bytes) -> bytes:
    """What the picture in a PNG file is packed from, without what is said of it."""
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(data)


def check_pictures(server: Server) -> str:
    """Pictures are those that `dlc sample` makes, asked for with openai's client."""
    made = server.client().images.generate(
        model="sd", prompt="a cat", n=2, response_format="b64_json", extra_body={"seed": 7, "steps": 4}
    )
    demand_form(made.model_dump(exclude_none=True), "Images")
    for at, picture in enumerate(made.data):
        path = server.setup.folder / f"{at}.png"
        arguments = ["--prompt", "a cat", "--seed", str(7 + at), "--steps", "4", "--scale", "1", "-o", str(path)]
        server.setup.run("sample", str(server.setup.folder / "sd"), *arguments)
        equal(f"picture {at}", pixels(base64.b64decode(picture.b64_json)) == pixels(path.read_bytes()), True)
    return f"{len(made.data)} pictures"


APART: dict[str, Callable[[Setup], str]] = {
    "embeddings": check_embeddings,
    "rerank": with_others(check_rerank),
    "pictures": with_others(check_pictures),
}
