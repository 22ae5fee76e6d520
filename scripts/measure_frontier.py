#!/usr/bin/env python3
"""Quality against speed of one decoder in many forms: KL divergence to the f32 model, and decoded tokens per second.

    "$(scripts/pyenv.sh)" scripts/measure_frontier.py CHECKPOINT --out points.json --plot frontier.svg
        [--dlc target/release/dlc] [--ways WAY...] [--peers BUNDLE...] [--llama-cpp BUILD/bin --gguf F16.gguf]
        [--max-tokens N] [--prompts N] [--turns N] [--threads N]

CHECKPOINT is compiled with profile `ort`, once in f32 and once for each WAY, a row of passes as `dlc compile` takes them,
joined by `+`; each decodes as `dlc run` does by itself, with a draft where the way has one, and a quantised target plainly
too. PEERs are folders that `quantize_peer.py` wrote. They, and bundles without a draft, are also decoded by
onnxruntime-genai. llama.cpp quantises its own f16 file of the same weights (`write_f16_gguf.py`, or llama.cpp's
`convert_hf_to_gguf.py CHECKPOINT --outtype f16`) to Q8_0 and Q4_K_M.

Every turn decodes the first N prompts of `dlc bench`'s suite (llama-bench: as many tokens behind an empty prompt) in every
way; the median of the turns counts, as a ratio to dlc's plain f32 of the same turn. KL is that of `dlc compare`, of
`check_compare.py` for PEERs, and of `llama-perplexity --kl-divergence` over the same text in pieces of 256 tokens, whose second
halves it judges. Texts must equal those that the way's target writes plainly.

Prints a Markdown table. Exit status: 0 done, 1 a program failed or a text differs, 2 bad usage.
"""

import argparse
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from bench_decoding_peer import SUITE, genai_rate, load
from check_compare import BUILT_IN_TEXT, figures, open_session, read_pieces

WAYS = [
    "quantize-draft:bits=8",
    "quantize:bits=8",
    "quantize:bits=8,method=gptq",
    "quantize:bits=4,method=rtn",
    "quantize:bits=4,method=hqq",
    "quantize:bits=4,method=imatrix",
    "quantize:bits=4,method=gptq",
    "quantize:bits=mixed,budget=6",
]


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)


PLAIN = ("--no-draft", "--no-lookup")


class Bench:
    """The programs' common arguments."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.prompts = folder / "prompts.jsonl"
        lines = SUITE.read_text(encoding="utf-8").splitlines()[: arguments.prompts]
        self.prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def compile(self, name, passes):
        flags = [flag for each in passes for flag in ("--pass", each)]
        out = self.folder / name
        run(self.arguments.dlc, "compile", self.arguments.checkpoint, "--profile", "ort", *flags, "-o", out, "--quiet")
        return out

    def decode(self, bundle, *flags):
        limits = ["--max-tokens", self.arguments.max_tokens, "--threads", self.arguments.threads]
        done = run(self.arguments.dlc, "run", bundle, "--prompts", self.prompts, "--json", "--quiet", *limits, *flags)
        runs = json.loads(done.stdout)
        seconds = sum(len(each["tokens"]) / each["stats"]["tokens_per_second"] for each in runs if each["tokens"])
        return sum(len(each["tokens"]) for each in runs) / seconds, runs

    def genai(self, bundle, prompts):
        with tempfile.TemporaryDirectory(prefix="frontier-") as scratch:
            model = load(bundle, "plain", self.arguments.threads, pathlib.Path(scratch))
            return genai_rate(model, prompts, self.arguments.max_tokens)


class Form:
    """One form of the model in one program: what it loses, and how fast it was."""

    def __init__(self, program, name, size, loss, rate):
        self.program, self.name, self.size, self.loss, self.rate = program, name, size, loss, rate
        self.rates = []

    def row(self, base):
        ratios = [rate / whole for rate, whole in zip(self.rates, base)]
        ends = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        rate = statistics.median(self.rates)
        return {"program": self.program, "name": self.name, "bytes": self.size, **self.loss, "tokens_per_second": rate, **ends}


def loss_of(kl, kl_p99, agreement, perplexity_ratio):
    return {"kl": kl, "kl_p99": kl_p99, "agreement": agreement, "perplexity_ratio": perplexity_ratio}


WITHOUT_LOSS = loss_of(0.0, 0.0, 1.0, 1.0)


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix not in (".json", ".yaml", ".jinja"))


def our_forms(bench, whole, prompts, texts):
    yield Form("dlc", "f32, plain", size_of(whole), WITHOUT_LOSS, lambda: bench.decode(whole, *PLAIN)[0])
    yield Form("dlc", "f32, lookups", size_of(whole), WITHOUT_LOSS, lambda: bench.decode(whole)[0])
    yield Form("genai", "f32", size_of(whole), WITHOUT_LOSS, lambda: bench.genai(whole, prompts))
    for at, way in enumerate(bench.arguments.ways):
        bundle = bench.compile(f"way{at}", way.split("+"))
        is_whole, loss, plain = "quantize:" not in way, WITHOUT_LOSS, texts
        if not is_whole:
            compared = json.loads(run(bench.arguments.dlc, "compare", whole, bundle, "--json", "--quiet").stdout)
            kl, perplexity_ratio = compared["kl"], compared["b"]["perplexity"] / compared["a"]["perplexity"]
            loss = loss_of(kl["mean"], kl["p99"], compared["agreement"], perplexity_ratio)
            plain = [each["tokens"] for each in bench.decode(bundle, *PLAIN)[1]]
        if [each["tokens"] for each in bench.decode(bundle)[1]] != plain:
            raise ValueError(f"{way}: texts differ from those of the target alone")
        has_draft, size = (bundle / "draft.onnx").is_file(), size_of(bundle)
        if not is_whole:
            yield Form("dlc", f"{way}, plain", size, loss, lambda bundle=bundle: bench.decode(bundle, *PLAIN)[0])
        name = way if has_draft else f"{way}, lookups"
        yield Form("dlc", name, size, loss, lambda bundle=bundle: bench.decode(bundle)[0])
        if not has_draft:
            yield Form("genai", way, size, loss, lambda bundle=bundle: bench.genai(bundle, prompts))


def peer_forms(bench, whole, prompts):
    if not bench.arguments.peers:
        return
    texts, target = read_pieces(whole, BUILT_IN_TEXT), open_session(whole / "model.onnx")
    for peer in bench.arguments.peers:
        found = figures(target, open_session(peer / "model.onnx"), texts)
        found = {name: float(value) for name, value in found.items()}
        perplexity_ratio = found["b.perplexity"] / found["a.perplexity"]
        loss = loss_of(found["kl.mean"], found["kl.p99"], found["agreement"], perplexity_ratio)
        name = f"onnxruntime {peer.name}"
        yield Form("genai", name, size_of(peer), loss, lambda peer=peer: bench.genai(peer, prompts))


def llama_forms(bench):
    arguments = bench.arguments
    if not arguments.llama_cpp:
        return
    tool = lambda name: arguments.llama_cpp / f"llama-{name}"
    threads, base = ["-t", arguments.threads], bench.folder / "logits"
    judge = lambda gguf, *flags: run(
        tool("perplexity"), "-m", gguf, "-f", BUILT_IN_TEXT, "-c", 256, *threads, "--kl-divergence-base", base, *flags
    )
    judge(arguments.gguf)
    for kind in ("F16", "Q8_0", "Q4_K_M"):
        gguf, loss = arguments.gguf, WITHOUT_LOSS
        if kind != "F16":
            gguf = bench.folder / f"{kind}.gguf"
            run(tool("quantize"), arguments.gguf, gguf, kind)
            judged = judge(gguf, "--kl-divergence")
            said = judged.stdout + judged.stderr
            number = lambda what: float(re.search(rf"{what}\s*:\s*(-?[0-9.]+)", said)[1])
            loss = loss_of(
                number("Mean +KLD"),
                number(r"99\.0% +KLD"),
                number("Same top p") / 100,
                number(r"Mean PPL\(Q\)/PPL\(base\)"),
            )
        command = [tool("bench"), "-m", gguf, *threads, "-p", 0, "-n", arguments.max_tokens, "-r", 3, "-o", "json"]
        rate = lambda command=command: json.loads(run(*command).stdout)[0]["avg_ts"]
        yield Form("llama.cpp", kind, gguf.stat().st_size, loss, rate)


def measure(arguments, folder):
    bench = Bench(arguments, folder)
    whole = bench.compile("f32", [])
    runs = bench.decode(whole, *PLAIN)[1]
    prompts, texts = ([each[key] for each in runs] for key in ("prompt_tokens", "tokens"))
    forms = [*our_forms(bench, whole, prompts, texts), *peer_forms(bench, whole, prompts), *llama_forms(bench)]
    for turn in range(arguments.turns):
        for form in forms:
            form.rates.append(form.rate())
        print(f"turn {turn + 1} of {arguments.turns}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return [form.row(forms[0].rates) for form in forms]


def table(rows):
    yield "| program | form | MB | KL | KL 99% | same likeliest | perplexity over f32's | speed over f32 | least and most |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        kl = f"{row['kl']:.4f} | {row['kl_p99']:.2f}" if row["kl"] > 0 else "0 | 0"
        ends = f"{row['least']:.2f} to {row['most']:.2f}"
        name = re.sub(r"^(.*?)(, (?:plain|lookups))?$", r"`\1`\2", row["name"])
        yield (
            f"| {row['program']} | {name} | {row['bytes'] / 1e6:.1f} | {kl} | {100 * row['agreement']:.1f}% "
            f"| {row['perplexity_ratio']:.3f} | {row['ratio']:.2f} | {ends} |"
        )


COLOURS = {"dlc": "#2b6cb0", "genai": "#718096", "llama.cpp": "#c05621"}


def free_place(taken, left, top, letters):
    """Where a point's name begins, beside it and over no other name."""
    width, height = 4.7 * letters, 10
    for down in (0, 10, -10, 20, -20, 30):
        for start in (left + 8, left - 8 - width):
            box = (start, top + 3 + down)
            inside = 4 <= start and start + width <= 756
            if inside and all(start + width < x or x + w < start or abs(box[1] - y) >= height for x, y, w in taken):
                taken.append((*box, width))
                return box
    return left + 8, top + 3


def plot(rows):
    """Points on a logarithmic axis of KL, those without loss on a line of their own."""
    losses = [row["kl"] for row in rows if row["kl"] > 0] or [0.01, 1]
    low, high = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))
    most = math.ceil(max(row["ratio"] for row in rows))
    x = lambda ratio: 70 + 620 * ratio / most
    y = lambda kl: 380 if kl <= 0 else 340 - 280 * (math.log10(kl) - low) / (high - low)
    yield '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 450" font-family="sans-serif" font-size="11">'
    yield '<rect width="760" height="450" fill="white"/>'
    yield '<text x="70" y="24" font-size="14">KL divergence to the f32 model, against speed (right and low is better)</text>'
    for power in range(low, high + 1):
        at = y(10.0**power)
        yield f'<line x1="70" x2="690" y1="{at:.0f}" y2="{at:.0f}" stroke="#e2e8f0"/><text x="62" y="{at + 4:.0f}" text-anchor="end">{10.0**power:g}</text>'
    yield '<line x1="70" x2="690" y1="380" y2="380" stroke="#a0aec0"/><text x="62" y="384" text-anchor="end">none</text>'
    for ratio in range(most + 1):
        yield f'<text x="{x(ratio):.0f}" y="400" text-anchor="middle">{ratio}x</text>'
    yield '<text x="380" y="418" text-anchor="middle">decoded tokens per second, over those of the f32 target alone in dlc</text>'
    for at, (program, colour) in enumerate(COLOURS.items()):
        yield f'<circle cx="{80 + 110 * at}" cy="437" r="5" fill="{colour}"/><text x="{90 + 110 * at}" y="441">{program}</text>'
    taken = []
    for row in rows:
        name = re.sub(r"(?<![^+])quantize:|,(calibration|samples)=[^,]*", "", row["name"]).replace("&", "&amp;").replace("<", "&lt;")
        left, top = x(row["ratio"]), y(row["kl"])
        yield f'<circle cx="{left:.1f}" cy="{top:.1f}" r="5" fill="{COLOURS[row["program"]]}"><title>{row["program"]}: {name}</title></circle>'
        # Bundles that are decoded in several ways are named once, where they are fastest.
        is_other = row["program"] == "genai" and "onnxruntime" not in row["name"]
        if not is_other and not (row["kl"] > 0 and name.endswith(", plain")):
            start, base = free_place(taken, left, top, len(name))
            yield f'<text x="{start:.1f}" y="{base:.1f}" font-size="9">{name}</text>'
    yield "</svg>"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--dlc", type=pathlib.Path, default=pathlib.Path("target/release/dlc"))
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--peers", nargs="*", type=pathlib.Path, default=[])
    parser.add_argument("--llama-cpp", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--plot", type=pathlib.Path)
    for name, default in [("max-tokens", 48), ("prompts", 16), ("turns", 3), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if bool(arguments.llama_cpp) != bool(arguments.gguf):
        parser.error("--llama-cpp and --gguf go together")
    onnxruntime.set_default_logger_severity(3)
    try:
        with tempfile.TemporaryDirectory(prefix="frontier-") as folder:
            rows = measure(arguments, pathlib.Path(folder))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"measure_frontier.py: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        arguments.plot.write_text("\n".join(plot(rows)) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
