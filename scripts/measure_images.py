#!/usr/bin/env python3
"""Ways to make pictures with fewer multiply-adds, beside each other: distance to the whole sampler, and what is in them.

    "$(scripts/pyenv.sh)" scripts/measure_images.py PIPELINE --classifier FILE.safetensors --out images.json
        [--dlc target/release/dlc] [--ways WAY...] [--each N] [--guidance G] [--turns N] [--threads N]

PIPELINE is a pipeline that draws the classes of the classifier (its metadata `classes`, layers conv1, conv2, conv3, linear).
The whole sampler makes N pictures of each class in 50 DDIM steps. A WAY is a pass of `dlc compile`, or `STEPS SCHEDULER` for
fewer steps of the whole model. Every way makes its pictures from the same noise and prompts.

Measured of each: multiply-adds over the whole sampler's, seconds over the whole sampler's (of `dlc sample`, median of the turns,
in alternation), mean PSNR to its pictures, the share that the classifier finds as asked, and the Frechet distance between the
pictures' features (64 means of the last convolution's maps) and the whole sampler's.

Prints a Markdown table. Exit status: 0 done, 1 a program failed, 2 bad usage.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from safetensors import safe_open
from safetensors.numpy import load_file

FULL = "50 ddim"
SHARES = (0.6, 0.35, 0.15)
WAYS = [
    *(f"dip-go:macs={share},reuse=linear" for share in SHARES),
    *(f"skip:macs={share},reuse=linear" for share in SHARES),
    *(f"skip:macs={share},random=true" for share in SHARES),
    *(f"{round(50 * share)} {scheduler}" for share in SHARES for scheduler in ("ddim", "dpm-solver++")),
]


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)


def convolved(x, weight, bias, stride):
    """A convolution of 3 x 3 with padding 1, and ReLU."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    out = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return np.maximum(out + bias[:, None, None], 0)


class Judge:
    """The classifier, and the features before its last layer."""

    def __init__(self, path):
        self.weights = load_file(path)
        with safe_open(path, "np") as file:
            self.classes = file.metadata()["classes"].split(",")

    def maps(self, images):
        x = images
        for layer, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
            x = convolved(x, self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"], stride)
        return x

    def classify(self, images):
        maps = self.maps(images)
        n, c, h, w = maps.shape
        pooled = maps.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5)).reshape(n, -1)
        return (pooled @ self.weights["linear.weight"].T + self.weights["linear.bias"]).argmax(1)

    def features(self, images):
        return self.maps(images).mean(axis=(2, 3)).astype(np.float64)


def frechet(a, b):
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of two sets of features."""
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cb @ root), 0)).sum()
    return float(((ma - mb) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * shared)


class Way:
    """One way to make the pictures."""

    def __init__(self, name, bundle, flags):
        self.name, self.bundle, self.flags, self.seconds = name, bundle, flags, []

    def sample(self, arguments, folder):
        latents = folder / "latents.safetensors"
        flags = ["--prompts", folder / "prompts.txt", "--count", arguments.each, "--guidance", arguments.guidance]
        flags += ["--batch", 50, "--threads", arguments.threads, "-o", folder / "x.png", "--latents", latents, "--json", "--quiet"]
        report = json.loads(run(arguments.dlc, "sample", self.bundle, *self.flags, *flags).stdout)
        self.seconds.append(report["seconds"])
        steps = report["evaluations"] / 50
        self.macs = report["macs"] * steps
        return load_file(latents)["latents"]


def decoded(bundle, latents):
    session = onnxruntime.InferenceSession(str(bundle / "vae_decoder.onnx"), providers=["CPUExecutionProvider"])
    parts = [session.run(["images"], {"latents": latents[i : i + 20]})[0] for i in range(0, len(latents), 20)]
    return np.concatenate(parts)


def ways(arguments, folder, whole):
    for name in arguments.ways:
        if ":" not in name:
            steps, scheduler = name.split()
            yield Way(name, whole, ["--steps", steps, "--scheduler", scheduler])
            continue
        bundle = folder / f"way{name.replace(':', '-').replace(',', '-')}"
        options = f",steps=50,scheduler=ddim,guidance={arguments.guidance}"
        if name.startswith("dip-go"):
            options += f",prompts={folder / 'prompts.txt'}"
        threads = ["--threads", arguments.threads]
        run(arguments.dlc, "compile", arguments.pipeline, "--profile", "ort", "--pass", name + options, "-o", bundle, "--quiet", *threads)
        yield Way(name, bundle, [])


def measure(arguments, folder):
    judge = Judge(arguments.classifier)
    prompts = [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in judge.classes]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    whole = folder / "whole"
    run(arguments.dlc, "compile", arguments.pipeline, "--profile", "ort", "-o", whole, "--quiet")
    full = Way(FULL, whole, ["--steps", 50, "--scheduler", "ddim"])
    all_ways = [full, *ways(arguments, folder, whole)]
    asked = np.arange(len(prompts)).repeat(arguments.each)
    pictures = {}
    for turn in range(arguments.turns):
        for way in all_ways:
            pictures[way.name] = way.sample(arguments, folder)
        print(f"turn {turn + 1} of {arguments.turns}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    pictures = {name: decoded(whole, latents) for name, latents in pictures.items()}
    own = pictures[FULL]
    for way in all_ways:
        images = pictures[way.name]
        squares = ((images - own) ** 2).mean(axis=(1, 2, 3))
        psnr = 10 * np.log10(4 / np.maximum(squares, 1e-12))
        yield {
            "way": way.name,
            "macs": way.macs,
            "seconds": statistics.median(a / b for a, b in zip(way.seconds, full.seconds)),
            "psnr": float(psnr.mean()) if way is not full else None,
            "as_asked": float((judge.classify(np.clip(images, -1, 1)) == asked).mean()),
            "frechet": frechet(judge.features(images), judge.features(own)),
        }


def table(rows):
    yield "| way | multiply-adds | seconds | PSNR, dB | as asked | Frechet |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.1f}"
        yield (
            f"| `{row['way']}` | {100 * row['macs']:.0f}% | {100 * row['seconds']:.0f}% | {psnr} "
            f"| {100 * row['as_asked']:.1f}% | {row['frechet']:.4f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=pathlib.Path)
    parser.add_argument("--classifier", type=pathlib.Path, required=True)
    parser.add_argument("--dlc", type=pathlib.Path, default=pathlib.Path("target/release/dlc"))
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--guidance", type=float, default=3.0)
    for name, default in [("each", 20), ("turns", 1), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    onnxruntime.set_default_logger_severity(3)
    try:
        with tempfile.TemporaryDirectory(prefix="images-") as folder:
            rows = list(measure(arguments, pathlib.Path(folder)))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"measure_images.py: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
