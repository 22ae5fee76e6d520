#!/usr/bin/env python3
"""Ways to make pictures with fewer multiply-adds, beside each other: distance to the whole sampler, and what is in them.

    "$(scripts/pyenv.sh)" scripts/measure_images.py PIPELINE --classifier FILE.safetensors --out images.json
        [--dlc target/release/dlc] [--base "50 ddim"] [--ways WAY... | --paper] [--learning OPTIONS]
        [--equal-seconds] [--shades] [--sheet FILE.png] [--columns N] [--each N] [--guidance G] [--turns N] [--threads N]

PIPELINE is a pipeline that draws the classes of the classifier (its metadata `classes`, layers conv1, conv2, conv3, linear).
The whole sampler makes N pictures of each class in the steps of --base. Every way makes its pictures from the same noise and
prompts. A WAY is one of

    PASS:OPTIONS           a pass of `dlc compile`; steps (of fit-solver: reference), scheduler, guidance and prompts are added
    STEPS SCHEDULER        fewer steps of the whole model
    deepcache:interval=N   everything at every N-th step, and the first and the last stage of the U-Net at every step: a
                           schedule for `skip`; with granularity=branch the last resnet and mixer alone, not the stages

--paper takes the ways that the DiP-GO paper compares: 50 steps of PNDM (as PLMS), stages, 80% pruned, against fewer steps and
against DeepCache. --learning gives all ways of dip-go further options, as `rounds=4,iterations=0,batch=2`. --equal-seconds
adds, for each way that is no number of steps, the number of steps of DDIM, DPM-Solver++ and UniPC (and of the base's scheduler)
whose seconds are nearest to the way's: they are sought with a few runs, before the turns that are reported. --shades also asks
for each class in dark and in light, and judges these pictures apart. --sheet writes a PNG file with a picture of each way, from
the same noise, for some of the prompts.

Measured of each: multiply-adds over the whole sampler's, seconds over the whole sampler's (of `dlc sample`, median of the turns,
in alternation), mean PSNR to its pictures, the share that the classifier finds as asked, in all and by class, and the Frechet
distance between the pictures' features (64 means of the last convolution's maps) and the whole sampler's. With --shades, of
the dark and light pictures: the share whose class is as asked, and the share that is darker or lighter, as asked, than the
median of the whole sampler's pictures of the class without a shade.

Prints Markdown tables. Exit status: 0 done, 1 a program failed, 2 bad usage.
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
from contact_sheet import contact_sheet
from image_ways import Maker, Stopwatch, Way
from judge_images import Judge, brightness, frechet, psnr

SHARES = (0.6, 0.35, 0.15)
WAYS = [
    *(f"fit-solver:steps={round(50 * share)}" for share in SHARES),
    *(f"dip-go:macs={share},reuse=linear" for share in SHARES),
    *(f"skip:macs={share},reuse=linear" for share in SHARES),
    *(f"skip:macs={share},random=true" for share in SHARES),
    *(f"{round(50 * share)} {scheduler}" for share in SHARES for scheduler in ("ddim", "dpm-solver++")),
]
# As arXiv 2410.16942 compares Stable Diffusion 1.5, and what it lacks: forecasts, evenly spread steps, steps of equal multiply-adds.
PAPER_BASE = "50 pndm"
PAPER = [
    "dip-go:macs=0.2,granularity=stage",
    "dip-go:macs=0.2,granularity=stage,reuse=linear",
    "skip:macs=0.2,granularity=stage",
    *(f"deepcache:interval={interval}" for interval in (2, 5)),
    *(f"deepcache:interval={interval},granularity=branch" for interval in (5, 10)),
    *(f"{steps} pndm" for steps in (25, 15, 10)),
    "10 ddim",
    "10 dpm-solver++",
]
SOLVERS = ("ddim", "dpm-solver++", "unipc")
SHADES = ("dark", "light")


def say(text):
    print(f"{text}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


def prompt(name):
    return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"


def decoded(bundle, latents):
    session = onnxruntime.InferenceSession(str(bundle / "vae_decoder.onnx"), providers=["CPUExecutionProvider"])
    parts = [session.run(["images"], {"latents": latents[i : i + 20]})[0] for i in range(0, len(latents), 20)]
    return np.concatenate(parts)


class Asked:
    """What the pictures should show: for each shade, none first, each class, and N pictures of that."""

    def __init__(self, classes, shades, each):
        self.shades, self.each, self.classes = ("", *shades), each, classes
        self.plain = [prompt(name) for name in classes]
        self.prompts = self.plain + [prompt(f"{shade} {name}") for shade in shades for name in classes]
        self.labels = np.tile(np.arange(len(classes)).repeat(each), len(self.shades))
        self.plain_count = len(classes) * each

    def plain_of(self, values):
        return values[: self.plain_count]

    def by_class(self, values):
        """[shades, classes, pictures]"""
        return values.reshape(len(self.shades), len(self.classes), self.each)


def know_shades(pipeline):
    tokens = json.loads((pipeline / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    missing = [shade for shade in SHADES if f"{shade}</w>" not in tokens]
    if missing:
        raise ValueError(f"{' and '.join(missing)} are no words of the pipeline's tokenizer; leave --shades out")


def with_equal_seconds(maker, ways, whole, say):
    """Further ways: for each bundle's seconds, as many steps of some solvers as take as long."""
    watch = Stopwatch(maker, whole, say)
    schedulers = dict.fromkeys((*SOLVERS, maker.base_scheduler))
    by_name = {way.name: way for way in ways}
    for way in ways:
        if ":" not in way.name:
            continue
        timed = Way(way.name, way.bundle, way.flags)
        timed.sample(maker)
        say(f"{way.name}: {timed.seconds[0]:.2f} s")
        for scheduler in schedulers:
            found = Way.steps(watch.nearest(scheduler, timed.seconds[0]), scheduler, whole)
            by_name.setdefault(found.name, found).as_long_as.append(way.name)
    return list(by_name.values())


def row_of(way, full, asked, judge, pictures):
    images, own = pictures[way.name], pictures[full.name]
    found = asked.by_class(judge.classify(images) == asked.labels)
    plain, own_plain = asked.plain_of(images), asked.plain_of(own)
    row = {
        "way": way.name,
        "as_long_as": way.as_long_as,
        "macs": way.cost / full.cost,
        "seconds": statistics.median(a / b for a, b in zip(way.seconds, full.seconds)),
        "runs": way.seconds,
        "psnr": psnr(plain, own_plain) if way is not full else None,
        "as_asked": float(found[0].mean()),
        "by_class": dict(zip(asked.classes, found[0].mean(1).tolist())),
        "frechet": frechet(judge.features(plain), judge.features(own_plain)),
    }
    if len(asked.shades) > 1:
        middle = np.median(asked.by_class(brightness(own))[0], axis=1)[:, None]
        lighter = asked.by_class(brightness(images)) > middle
        for at, shade in enumerate(asked.shades[1:], 1):
            right = lighter[at] if shade == "light" else ~lighter[at]
            row[shade] = {"class_as_asked": float(found[at].mean()), "shade_as_asked": float(right.mean())}
            row[shade]["by_class"] = dict(zip(asked.classes, right.mean(1).tolist()))
    return row


def measure(arguments, folder):
    judge = Judge(arguments.classifier)
    asked = Asked(judge.classes, SHADES if arguments.shades else (), arguments.each)
    for name, prompts in (("learned", asked.plain), ("sampled", asked.prompts)):
        (folder / f"{name}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    maker = Maker(arguments, folder)
    whole = maker.compile()
    full = Way.steps(*arguments.base, whole)
    ways = [full]
    for name in arguments.ways:
        ways.append(maker.way(name, whole))
        say(f"compiled {name}")
    if arguments.equal_seconds:
        ways = with_equal_seconds(maker, ways, whole, say)
    latents = {}
    for turn in range(arguments.turns):
        for way in ways:
            latents[way.name] = way.sample(maker)
        say(f"turn {turn + 1} of {arguments.turns}")
    pictures = {name: decoded(whole, each) for name, each in latents.items()}
    if arguments.sheet:
        write_sheet(arguments, asked, ways, pictures)
    return [row_of(way, full, asked, judge, pictures) for way in ways]


def write_sheet(arguments, asked, ways, pictures):
    count = min(arguments.columns, len(asked.prompts))
    chosen = [at * len(asked.prompts) // count for at in range(count)]
    rows = [(way.name, [pictures[way.name][asked.each * at] for at in chosen]) for way in ways]
    contact_sheet(arguments.sheet, [asked.prompts[at] for at in chosen], rows)


def table(rows):
    shades = [shade for shade in SHADES if shade in rows[0]]
    heads = ["way", "multiply-adds", "seconds", "PSNR, dB", "as asked", "Frechet", *(f"{shade}: class, shade as asked" for shade in shades)]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        name = f"`{row['way']}`" + (f", as long as {', '.join(f'`{way}`' for way in row['as_long_as'])}" if row["as_long_as"] else "")
        cells = [name, f"{100 * row['macs']:.0f}%", f"{100 * row['seconds']:.0f}%", "" if row["psnr"] is None else f"{row['psnr']:.1f}"]
        cells += [f"{100 * row['as_asked']:.1f}%", f"{max(row['frechet'], 0):.4f}"]
        cells += [f"{100 * row[shade]['class_as_asked']:.1f}%, {100 * row[shade]['shade_as_asked']:.1f}%" for shade in shades]
        yield f"| {' | '.join(cells)} |"


def class_table(rows):
    classes = list(rows[0]["by_class"])
    yield f"| as asked | {' | '.join(classes)} |"
    yield f"|{'---|' * (1 + len(classes))}"
    for row in rows:
        shares = (f"{100 * row['by_class'][name]:.0f}%" for name in classes)
        yield f"| `{row['way']}` | {' | '.join(shares)} |"


def base(text):
    steps, scheduler = text.split()
    return int(steps), scheduler


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=pathlib.Path)
    parser.add_argument("--classifier", type=pathlib.Path, required=True)
    parser.add_argument("--dlc", type=pathlib.Path, default=pathlib.Path("target/release/dlc"))
    parser.add_argument("--base", type=base)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ways", nargs="+", default=WAYS)
    which.add_argument("--paper", action="store_true")
    parser.add_argument("--learning")
    parser.add_argument("--equal-seconds", action="store_true")
    parser.add_argument("--shades", action="store_true")
    parser.add_argument("--sheet", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--guidance", type=float, default=3.0)
    for name, default in [("columns", 8), ("each", 20), ("turns", 1), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if arguments.paper:
        arguments.ways = PAPER
    if arguments.learning:
        arguments.ways = [f"{way},{arguments.learning}" if way.startswith("dip-go:") else way for way in arguments.ways]
    arguments.base = arguments.base or base(PAPER_BASE if arguments.paper else "50 ddim")
    onnxruntime.set_default_logger_severity(3)
    try:
        if arguments.shades:
            know_shades(arguments.pipeline)
        with tempfile.TemporaryDirectory(prefix="images-") as folder:
            rows = measure(arguments, pathlib.Path(folder))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"measure_images.py: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*table(rows), "", *class_table(rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
