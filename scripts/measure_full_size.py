#!/usr/bin/env python3
"""What a pipeline of Stable Diffusion 1.5's size costs: compiling it, one picture of few steps, and 50 steps from there.

    "$(scripts/pyenv.sh)" scripts/measure_full_size.py --out full-size.json
        [--dlc target/release/dlc] [--pipeline FOLDER | --small] [--dtypes f32 f16] [--steps N] [--share S]
        [--repeats N] [--threads N] [--guidance G] [--temp FOLDER]

The pipeline is FOLDER, or one of random weights that `random_pipeline.py` writes. Everything lies in a folder of its own under
--temp, which is removed: 7 GB for the full size in f32, at most one bundle at a time.

Measured for each element type: seconds and memory of `dlc compile`, of each phase of `dlc sample --steps N` (loading of the
decoder counts as sampling), and of two further pictures: one of 1 step, and one of 2 steps by `skip:interval=2`, whose second
step reuses everything. From these follow the seconds of an evaluation of the whole network, and of one that reuses all. How
many of 50 are of which kind with `skip:macs=S` says the bundle that is compiled with it. So 50 steps are computed, not
measured: a picture of 1 step, and the evaluations that it lacks.

Memory is the most that a process held, mapped files included, and the part of it that is no file (RssAnon, looked at every 20
ms; Linux only). Prints a Markdown table. Exit status: 0 done, 1 a program failed, 2 bad usage.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import random_pipeline

PROMPT = "a photo of a red house by the sea"
# What is projected.
STEPS = 50
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# A line of `--log-level debug`.
PHASE = re.compile(r"^(?P<name>[^:\n]+): (?P<seconds>[0-9.]+) s(?:, (?P<memory>[0-9]+) MB of memory at most)?$", re.M)


class Watched:
    """A program that ran to its end: what it wrote, how long it took, and the memory that was no file's."""

    def __init__(self, *command):
        command = [str(part) for part in command]
        self.anonymous, start = 0, time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            ended = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(process.pid, ended))
            watcher.start()
            try:
                self.stdout, self.stderr = process.communicate()
            finally:
                process.kill()
                ended.set()
                watcher.join()
        self.seconds = time.monotonic() - start
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command, self.stdout, self.stderr)

    def _watch(self, pid, ended):
        while not ended.wait(0.02):
            try:
                status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            except OSError:
                return
            found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)
            self.anonymous = max(self.anonymous, 1024 * int(found[1]) if found else 0)

    def phases(self):
        return [
            {"name": found["name"], "seconds": float(found["seconds"]), "peak_memory": found["memory"] and int(found["memory"]) * 10**6}
            for found in PHASE.finditer(self.stderr)
        ]

    def report(self):
        phases = self.phases()
        peak = max((phase["peak_memory"] or 0 for phase in phases), default=0)
        return {"seconds": self.seconds, "peak_memory": peak, "anonymous_memory": self.anonymous, "phases": phases}


def largest_tensor(pipeline):
    """The numbers in the largest tensor of a folder, and the bytes of its tensor files."""
    most, total = 0, 0
    for path in pipeline.rglob("*.safetensors"):
        total += path.stat().st_size
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            count = 1
            for dim in tensor["shape"] if name != "__metadata__" else ():
                count *= dim
            most = max(most, count)
    return most, total


class Bench:
    def __init__(self, arguments, folder, pipeline):
        self.arguments, self.folder, self.pipeline = arguments, folder, pipeline

    def compile(self, dtype, *passes):
        """A bundle in the place of the one before."""
        bundle = self.folder / "bundle"
        shutil.rmtree(bundle, ignore_errors=True)
        flags = [flag for each in passes for flag in ("--pass", each)]
        flags += ["--profile", "ort", "--dtype", dtype, "--threads", self.arguments.threads]
        ran = Watched(self.arguments.dlc, "compile", self.pipeline, *flags, "-o", bundle, "--log-level", "debug")
        return bundle, ran

    def sample(self, bundle, *flags):
        """The run of median length."""
        flags = [*flags, "--prompt", PROMPT, "--guidance", self.arguments.guidance, "--threads", self.arguments.threads]
        flags += ["-o", self.folder / "x.png", "--log-level", "debug"]
        runs = [Watched(self.arguments.dlc, "sample", bundle, *flags).report() for _ in range(self.arguments.repeats)]
        return sorted(runs, key=lambda run: run["seconds"])[(len(runs) - 1) // 2]

    def measure(self, dtype):
        arguments = self.arguments
        most, checkpoint = largest_tensor(self.pipeline)
        bundle, ran = self.compile(dtype)
        files = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        row = {"dtype": dtype, "checkpoint_bytes": checkpoint, "bundle_bytes": files, "largest_tensor_bytes": BYTES[dtype] * most}
        row["compile"] = ran.report()
        row["sample"] = self.sample(bundle, "--steps", arguments.steps, "--scheduler", "ddim")
        row["one_step"] = self.sample(bundle, "--steps", 1, "--scheduler", "ddim")
        common = f"scheduler=ddim,guidance={arguments.guidance}"
        bundle, _ = self.compile(dtype, f"skip:macs={arguments.share},steps={STEPS},{common}")
        manifest = json.loads(Watched(arguments.dlc, "inspect", bundle, "--json", "--quiet").stdout)["manifest"]
        rows = manifest["sampling"]["schedule"]["steps"]
        row["whole_steps"], row["macs"] = sum("#" in each for each in rows), manifest["sampling"]["macs"]
        if any("#" in each and "." in each for each in rows):
            raise ValueError("a step of skip computes a part: its cost isn't known")
        bundle, _ = self.compile(dtype, f"skip:interval=2,steps=2,{common}")
        row["reusing"] = self.sample(bundle)
        shutil.rmtree(bundle)
        return row | self.projected(row)

    def projected(self, row):
        """The evaluations after the first of a picture, from the differences of three pictures."""
        one = row["one_step"]["seconds"]
        whole = (row["sample"]["seconds"] - one) / (self.arguments.steps - 1)
        reused = row["reusing"]["seconds"] - one
        pruned = one + (row["whole_steps"] - 1) * whole + (STEPS - row["whole_steps"]) * reused
        return {"evaluation": whole, "reusing_evaluation": reused, "full_seconds": one + (STEPS - 1) * whole, "pruned_seconds": pruned}


def megabytes(count):
    return f"{count / 1e6:.0f} MB"


def cost(report):
    """Seconds and memory of a program."""
    memory = f"{megabytes(report['peak_memory'])}, {megabytes(report['anonymous_memory'])} of it anonymous"
    return f"{report['seconds']:.1f} s, {memory}"


def phase_cost(phase):
    return f"{phase['seconds']:.1f} s" + (f", {megabytes(phase['peak_memory'])}" if phase["peak_memory"] else "")


def table(rows, arguments):
    lines = [("", [row["dtype"] for row in rows]), ("---", ["---"] * len(rows))]
    add = lambda label, value: lines.append((label, [value(row) for row in rows]))
    add("checkpoint", lambda row: f"{row['checkpoint_bytes'] / 1e9:.2f} GB")
    add("bundle", lambda row: f"{row['bundle_bytes'] / 1e9:.2f} GB")
    add("`dlc compile`", lambda row: cost(row["compile"]))
    add("the largest tensor, as it is written", lambda row: megabytes(row["largest_tensor_bytes"]))
    add(f"`dlc sample --steps {arguments.steps}`", lambda row: cost(row["sample"]))
    for at, phase in enumerate(rows[0]["sample"]["phases"]):
        add(f"- {phase['name']}", lambda row, at=at: phase_cost(row["sample"]["phases"][at]))
    add("`dlc sample --steps 1`", lambda row: cost(row["one_step"]))
    add("`dlc sample`, 2 steps of `skip:interval=2`", lambda row: cost(row["reusing"]))
    add("one evaluation, so", lambda row: f"{row['evaluation']:.2f} s")
    add("one that reuses everything, so", lambda row: f"{row['reusing_evaluation']:.2f} s")
    add(f"{STEPS} steps, projected", lambda row: f"{row['full_seconds']:.0f} s")
    pruned = lambda row: (
        f"{row['pruned_seconds']:.0f} s, {100 * row['pruned_seconds'] / row['full_seconds']:.0f}% "
        f"({row['whole_steps']} whole steps, {100 * row['macs']:.1f}% of the multiply-adds)"
    )
    add(f"{STEPS} steps of `skip:macs={arguments.share}`, projected", pruned)
    return [f"| {label} | {' | '.join(values)} |".replace("|  |", "| |") for label, values in lines]


def measure(arguments, folder):
    pipeline = arguments.pipeline
    if pipeline is None:
        pipeline = folder / "pipeline"
        random_pipeline.write(pipeline, random_pipeline.SMALL if arguments.small else random_pipeline.FULL)
    _, size = largest_tensor(pipeline)
    room, free = max(BYTES[dtype] for dtype in arguments.dtypes) / 2 * size + 2**28, shutil.disk_usage(folder).free
    if free < room:
        raise OSError(f"{folder} has room for {free / 1e9:.1f} GB, and {room / 1e9:.1f} are needed; name another folder with --temp")
    bench = Bench(arguments, folder, pipeline)
    for dtype in arguments.dtypes:
        yield bench.measure(dtype)
        print(f"{dtype} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dlc", type=pathlib.Path, default=pathlib.Path("target/release/dlc"))
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--pipeline", type=pathlib.Path)
    source.add_argument("--small", action="store_true")
    parser.add_argument("--dtypes", nargs="+", choices=BYTES, default=["f32", "f16"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.35)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--temp", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: 2 or more, for the difference to 1")
    try:
        with tempfile.TemporaryDirectory(prefix="full-size-", dir=arguments.temp) as folder:
            rows = list(measure(arguments, pathlib.Path(folder)))
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"measure_full_size.py: {error} {getattr(error, 'stderr', '') or ''}", file=sys.stderr)
        return 1
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows, arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
