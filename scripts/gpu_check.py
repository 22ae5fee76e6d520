#!/usr/bin/env python3
"""The steps of gpu_check.sh, which says what they are and how to run them.

Each step is a function that takes the request and reports rows: what was looked at, its state (ok, failed, refused,
absent, timeout), numbers, and a word about it. A row is written as soon as it is known.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = pathlib.Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
PROFILES = ["portable", "onnx", "ort"]
DTYPES = ["f32", "f16", "bf16"]
# Three decoders and two encoders; caches on the device are tiny-llama's, which has a tokenizer.
FAMILIES = ["tiny-llama", "goldens/qwen3", "goldens/gemma2-wide", "goldens/bert", "goldens/modernbert"]
# Exit code of dlc where something isn't supported.
UNSUPPORTED = 3


class Absent(Exception):
    """What a step needs and isn't there."""


@dataclass
class Request:
    provider: str
    dlc: pathlib.Path
    models: pathlib.Path
    out: pathlib.Path

    @property
    def is_dry(self) -> bool:
        return self.provider == "cpu"

    def run(self, *arguments: object, provider: str | None = None) -> subprocess.CompletedProcess:
        """Runs dlc on a bundle, by default on the provider that is checked."""
        command = [*map(str, arguments), "--backend", "onnxruntime", "--provider", provider or self.provider]
        return self.dlc_alone(*command)

    def dlc_alone(self, *arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([str(self.dlc), *map(str, arguments)], capture_output=True, text=True, check=False)

    def compile(self, model: pathlib.Path, *flags: str) -> tuple[pathlib.Path, dict]:
        """A bundle that replaces the one before, and what compiling said. Raises Failed."""
        bundle = self.out / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        done = self.dlc_alone("compile", model, *flags, "--provider", "cuda", "--json", "-o", bundle)
        if done.returncode:
            raise Failed(done)
        return bundle, json.loads(done.stdout)


class Failed(Exception):
    """A command of dlc that didn't end well."""

    def __init__(self, done: subprocess.CompletedProcess) -> None:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        super().__init__(lines[-1][:300])
        self.state = "refused" if done.returncode == UNSUPPORTED else "failed"


Report = Callable[..., None]


def attempt(report: Report, what: str, work: Callable[[], dict]) -> None:
    """Reports what `work` returns, or why it didn't; `state` is ok unless it says otherwise."""
    start = time.monotonic()
    try:
        row = work()
    except Absent as error:
        row = {"state": "absent", "note": str(error)}
    except Failed as error:
        row = {"state": error.state, "note": str(error)}
    except Exception as error:  # a step's row, whatever a library raises
        row = {"state": "failed", "note": f"{type(error).__name__}: {error}"[:300]}
    report(what=what, **{"state": "ok", "seconds": round(time.monotonic() - start, 1), **row})


def machine(request: Request, report: Report) -> None:
    def gpu() -> dict:
        if request.is_dry:
            raise Absent("dry run on the CPU")
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
        try:
            return {"note": subprocess.check_output(query, text=True).strip()}
        except (OSError, subprocess.CalledProcessError) as error:
            raise Absent(f"nvidia-smi: {error}") from error

    def backend() -> dict:
        done = request.dlc_alone("doctor", "--json")
        if done.returncode:
            raise Failed(done)
        found = json.loads(done.stdout)
        note = f"{found['backend']} {found['version']}, providers {', '.join(found['providers'])}"
        return {"note": note, "state": "ok" if request.provider in found["providers"] else "failed"}

    attempt(report, "GPU", gpu)
    attempt(report, "backend", backend)
    attempt(report, "host", lambda: {"note": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"})


def accuracy(request: Request, report: Report) -> None:
    for family in FAMILIES:
        model = FIXTURES / family
        for profile in PROFILES:
            for dtype in DTYPES:
                title = f"{model.name} {profile} {dtype}"
                attempt(report, title, lambda: verified(request, model, profile, dtype))
    attempt(report, "tiny-llama ort f16, draft", lambda: decoded(request, FIXTURES / "tiny-llama", DRAFT, 1))


DRAFT = ["--pass", "fit-prune:drop=4", "--pass", "quantize-draft"]


def verified(request: Request, model: pathlib.Path, profile: str, dtype: str) -> dict:
    """Every graph against the evaluator on the CPU; of a model with a tokenizer the text as well."""
    bundle, said = request.compile(model, "--profile", profile, "--dtype", dtype)
    done = request.run("verify", bundle, "--json")
    if not done.stdout.startswith("{"):
        raise Failed(done)
    checks = json.loads(done.stdout)["checks"]
    worst = max(checks, key=lambda check: check["error"] / check["allowed"])
    row = {
        "error": worst["error"],
        "allowed": worst["allowed"],
        "cpu_nodes": len(said["cpu_nodes"]),
        "state": "ok" if done.returncode == 0 else "failed",
    }
    if (model / "tokenizer.json").exists() and row["state"] == "ok":
        row |= same_text(request, bundle, dtype)
    return row


def same_text(request: Request, bundle: pathlib.Path, dtype: str) -> dict:
    """Whether the text, with caches on the device, is the CPU's; in f16 and bf16 near ties may fall otherwise."""
    command = ["run", bundle, "--prompt", "And it came to pass", "--max-tokens", 48, "--no-lookup"]
    ours = request.run(*command)
    if ours.returncode:
        raise Failed(ours)
    theirs = request.run(*command, provider="cpu")
    if theirs.returncode:
        return {"note": "the CPU doesn't run this type, so its text isn't compared"}
    equal = ours.stdout == theirs.stdout
    state = "ok" if equal or dtype != "f32" else "failed"
    return {"state": state, "note": "the CPU's text" if equal else "another text than the CPU's"}


# What images are compared with, on the CPU.
REFERENCE = ("portable", "f32")


def sampling(request: Request, report: Report) -> None:
    for stale in request.out.glob("*.safetensors"):
        stale.unlink()
    fashion = [FIXTURES / "fashion-sd", request.models / "fashion-sd"]
    models = [FIXTURES / "digits-dit", next((m for m in fashion if m.exists()), fashion[0])]
    for model in models:
        for profile in PROFILES:
            for dtype in DTYPES:
                title = f"{model.name} {profile} {dtype}"
                attempt(report, title, lambda: sampled(request, model, profile, dtype))


def sampled(request: Request, model: pathlib.Path, profile: str, dtype: str) -> dict:
    """Images of a pruned sampler, values remembered on the device, against the CPU's in f32."""
    if not model.exists():
        raise Absent(f"no {model}")
    import numpy
    from safetensors.numpy import load_file

    def latents(provider: str, profile: str, dtype: str) -> pathlib.Path:
        """The file of what the sampler leaves; the reference is made once."""
        to = request.out / f"{model.name}-{provider}-{profile}-{dtype}.safetensors"
        if to.exists() and (profile, dtype) == REFERENCE:
            return to
        bundle, _ = request.compile(model, "--profile", profile, "--dtype", dtype, "--pass", "skip:interval=2,steps=10")
        conditions = model / "embeddings.safetensors"
        extra = ["--embeddings", conditions] if conditions.exists() else []
        places = ["-o", request.out / "image.png", "--latents", to]
        done = request.run("sample", bundle, "--count", 4, *places, *extra, provider=provider)
        if done.returncode:
            raise Failed(done)
        return to

    files = latents(request.provider, profile, dtype), latents("cpu", *REFERENCE)
    ours, theirs = (load_file(file)["latents"].astype(numpy.float32) for file in files)
    error, scale = float(numpy.abs(ours - theirs).max()), float(numpy.abs(theirs).max())
    allowed = {"f32": 1e-3, "f16": 2e-2, "bf16": 1e-1}[dtype] * max(scale, 1.0)
    return {"error": error, "allowed": allowed, "state": "ok" if error <= allowed else "failed"}


def decoded(request: Request, model: pathlib.Path, passes: list[str], repeats: int, tokens: int = 64) -> dict:
    """Plain and speculative decoding of one bundle, in f16 and profile ort (in f32 on the CPU)."""
    if not (model / "config.json").exists():
        raise Absent(f"no {model}")
    dtype = "f32" if request.is_dry else "f16"
    bundle, _ = request.compile(model, "--profile", "ort", "--dtype", dtype, *passes)
    done = request.run("bench", bundle, "--suite", "--max-tokens", tokens, "--repeats", repeats, "--json")
    if not done.stdout.startswith("{"):
        raise Failed(done)
    found = json.loads(done.stdout)
    written = sum(prompt["tokens"] for prompt in found["prompts"])
    return {
        "plain_ms": round(1000 * found["plain_seconds"] / written, 3),
        "speculative_ms": round(1000 * found["speculative_seconds"] / written, 3),
        "speedup": round(found["speedup"], 3),
        "acceptance": round(found["acceptance"], 3),
        "draft_cost": found["costs"]["draft"],
        "verify": found["costs"]["verify"],
        "ties": found["ties"],
        "state": "ok" if done.returncode == 0 else "failed",
    }


def decoding(request: Request, report: Report) -> None:
    model = FIXTURES / "tiny-llama" if request.is_dry else request.models / "qwen2.5-coder-1.5b"
    drafts = {
        "lookup alone": [],
        "int8": ["--pass", "quantize-draft:bits=8,method=rtn"],
        "int4": ["--pass", "quantize-draft:bits=4"],
        "pruned": ["--pass", "fit-prune:drop=4,samples=2,length=64"],
    }
    for name, passes in drafts.items():
        attempt(report, f"{model.name}, {name}", lambda: decoded(request, model, passes, 1))


def tensorrt(request: Request, report: Report) -> None:
    goldens = ["llama", "qwen2", "bert", "dit", "unet-sd15"]
    for golden in goldens[:2] if request.is_dry else goldens:
        for dtype in ("f32", "f16"):
            attempt(report, f"{golden} {dtype}", lambda: engine_ran(request, golden, dtype))


def engine_ran(request: Request, golden: str, dtype: str) -> dict:
    """An engine of TensorRT for RTX runs, and says what ONNX Runtime says on the CPU."""
    if request.is_dry:
        raise Absent("an engine needs a GPU")
    try:
        import gpu_tensorrt
    except ImportError as error:
        raise Absent(str(error)) from error
    bundle, _ = request.compile(FIXTURES / "goldens" / golden, "--deploy", "tensorrt", "--dtype", dtype)
    error = gpu_tensorrt.error(bundle / "model.onnx")
    allowed = {"f32": 1e-3, "f16": 5e-2}[dtype]
    return {"error": error, "allowed": allowed, "state": "ok" if error <= allowed else "failed"}


def seven(request: Request, report: Report) -> None:
    """A decoder of 7B's shape with random weights; of a small one in a dry run."""
    import random_decoder

    shape = random_decoder.SMALL if request.is_dry else random_decoder.SEVEN
    folder = request.out / "random"
    checkpoint, pruned = folder / "whole", folder / "pruned"
    try:
        attempt(report, "checkpoint", lambda: random_decoder.write(checkpoint, pruned, shape))
        drafts = {"int8": ["--pass", "quantize-draft:bits=8,method=rtn"], "int4": ["--pass", "quantize-draft:bits=4,method=rtn"]}
        attempt(report, "plain", lambda: decoded(request, checkpoint, [], 1, 16))
        attempt(report, "CUDA graphs", lambda: graphs(request))
        for name, passes in drafts.items():
            attempt(report, name, lambda: decoded(request, checkpoint, passes, 1, 16))
        # Of random weights every layer is as good: the step of a pruned draft is that of a shorter model.
        attempt(report, f"pruned to {shape.kept} of {shape.layers} layers", lambda: decoded(request, pruned, [], 1, 16))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def graphs(request: Request) -> dict:
    if request.is_dry:
        raise Absent("CUDA graphs need a GPU")
    import gpu_graphs

    return gpu_graphs.step_times(request.out / "bundle" / "model.onnx")


# Each step with its budget in seconds.
STEPS: dict[str, tuple[Callable[[Request, Report], None], int]] = {
    "machine": (machine, 20),
    "accuracy": (accuracy, 330),
    "sampling": (sampling, 150),
    "decoding": (decoding, 210),
    "tensorrt": (tensorrt, 90),
    "seven": (seven, 390),
}


def run_step(name: str, request: Request) -> None:
    """Runs a step in this process, and prints a line of JSON for each row."""
    def report(**row: object) -> None:
        print(json.dumps({"step": name, **row}), flush=True)

    STEPS[name][0](request, report)


def supervise(name: str, budget: int, arguments: list[str]) -> list[dict]:
    """Runs a step in a process of its own; the rows that it had when it ended, or was ended."""
    command = [sys.executable, __file__, *arguments, "--step", name]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        text, _ = child.communicate(timeout=budget)
        end = None if child.returncode == 0 else ("failed", f"the step ended with {child.returncode}")
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        text, _ = child.communicate()
        end = ("timeout", f"not done after {budget} s")
    rows = [json.loads(line) for line in (text or "").splitlines() if line.startswith("{")]
    for row in rows:
        print(f"{row['state']:8} {name}: {row['what']} {row.get('note', '')}", file=sys.stderr, flush=True)
    if end:
        print(f"{end[0]:8} {name}: {end[1]}", file=sys.stderr, flush=True)
        rows.append({"step": name, "what": "the rest", "state": end[0], "note": end[1]})
    return rows


def table(provider: str, rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = [f"Provider `{provider}`.", "", "| step | what | state | numbers | note |", "|---|---|---|---|---|"]
    skipped = {"step", "what", "state", "note"}
    for row in rows:
        numbers = ", ".join(f"{key} {shown(value)}" for key, value in row.items() if key not in skipped)
        note = row.get("note", "").replace("|", "/").replace("\n", " ")
        lines.append(f"| {row['step']} | {row['what']} | {row['state']} | {numbers} | {note} |")
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " ".join(f"v({pair[0]})={pair[1]:.2f}" for pair in value)
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.sh")
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dlc", type=pathlib.Path, default=ROOT / "target/release/dlc")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "target/models")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/gpu-check")
    parser.add_argument("--only", action="append", choices=list(STEPS))
    parser.add_argument("--budget", type=int)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    request = Request(arguments.provider, arguments.dlc.resolve(), arguments.models.resolve(), arguments.out.resolve())
    if not request.dlc.is_file():
        parser.error(f"no {request.dlc}; build it with `cargo build --release`, or name another with --dlc")
    request.out.mkdir(parents=True, exist_ok=True)
    if arguments.step:
        run_step(arguments.step, request)
        return 0
    places = [f"--{name}={getattr(request, name)}" for name in ("provider", "dlc", "models", "out")]
    rows: list[dict] = []
    for name in arguments.only or STEPS:
        rows += supervise(name, arguments.budget or STEPS[name][1], places)
        written = {"provider": request.provider, "rows": rows}
        (request.out / "gpu_check.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(request.out / "bundle", ignore_errors=True)
    text = table(request.provider, rows)
    (request.out / "gpu_check.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(row["state"] in ("failed", "timeout") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
