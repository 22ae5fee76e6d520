"""Ways to make pictures with fewer multiply-adds: passes of `dlc compile`, fewer steps, and caching as DeepCache does it."""

import json
import subprocess

from safetensors.numpy import load_file


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)


class Way:
    """One way to make the pictures: a bundle, and flags of `dlc sample`."""

    def __init__(self, name, bundle, flags=()):
        self.name, self.bundle, self.flags = name, bundle, list(flags)
        self.seconds, self.as_long_as = [], []

    @classmethod
    def steps(cls, count, scheduler, whole):
        return cls(f"{count} {scheduler}", whole, ["--steps", count, "--scheduler", scheduler])

    def sample(self, maker):
        """Makes all pictures; returns what the sampler leaves."""
        latents = maker.folder / "latents.safetensors"
        report = maker.dlc("sample", self.bundle, *self.flags, *maker.sampling, "--latents", latents, "--json")
        self.seconds.append(report["seconds"])
        # In evaluations of the whole network.
        self.cost = report["macs"] * report["whole_evaluations"]
        return load_file(latents)["latents"]


class Maker:
    """The program, the pipeline and what all ways share."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.bundles = 0
        self.base_steps, self.base_scheduler = arguments.base
        self.sampling = ["--prompts", folder / "sampled.txt", "--count", arguments.each, "--guidance", arguments.guidance]
        self.sampling += ["--batch", 50, "--threads", arguments.threads, "-o", folder / "x.png"]

    def dlc(self, *command):
        return json.loads(run(self.arguments.dlc, *command, "--quiet").stdout)

    def compile(self, *passes):
        self.bundles += 1
        bundle = self.folder / f"bundle{self.bundles}"
        flags = [flag for each in passes for flag in ("--pass", each)]
        flags += ["--profile", "ort", "--threads", self.arguments.threads, "--quiet"]
        run(self.arguments.dlc, "compile", self.arguments.pipeline, *flags, "-o", bundle)
        return bundle

    def way(self, name, whole):
        if ":" not in name:
            steps, scheduler = name.split()
            return Way.steps(int(steps), scheduler, whole)
        kind, options = name.split(":", 1)
        common = f"steps={self.base_steps},scheduler={self.base_scheduler},guidance={self.arguments.guidance}"
        if kind == "deepcache":
            return Way(name, self.deepcache(options, common))
        if kind == "fit-solver":
            common = common.replace("steps=", "reference=", 1)
        if kind in ("dip-go", "fit-solver"):
            common += f",prompts={self.folder / 'learned.txt'}"
        return Way(name, self.compile(f"{kind}:{options},{common}"))

    def deepcache(self, options, common):
        """Everything at every N-th step, and between them what is outermost alone, on what was there before."""
        scaffold = self.compile(f"skip:{options},{common}" if "granularity" in options else f"skip:{options},granularity=stage,{common}")
        schedule = self.dlc("inspect", scaffold, "--json")["manifest"]["sampling"]["schedule"]
        kept = outermost(schedule["units"])
        computed = lambda row: "".join("#" if unit in kept else cell for unit, cell in zip(schedule["units"], row))
        schedule["steps"] = [computed(row) for row in schedule["steps"]]
        file = self.folder / f"schedule{self.bundles}.yaml"
        file.write_text(json.dumps(schedule), encoding="utf-8")
        return self.compile(f"skip:schedule={file},{common}")


def outermost(units):
    """What DeepCache (arXiv 2312.00858) computes at every step, of the stages or of the parts of a U-Net.

    Of stages the first and the last. Of parts the last resnet and what follows it: all that reads the outermost connection
    from the way down, which the first convolution makes.
    """
    stages = [unit for unit in units if unit.count(".") <= 1]
    if len(stages) == len(units):
        return {units[0], units[-1]}
    last = units[-1].split(".")
    return {unit for unit in units if unit.split(".")[:2] == last[:2] and unit.split(".")[-1] == last[-1]}


class Stopwatch:
    """How long fewer steps of the whole network take, measured as it is asked for."""

    def __init__(self, maker, whole, say):
        self.maker, self.whole, self.say = maker, whole, say
        self.known = {}

    def of(self, scheduler, steps):
        known = self.known.setdefault(scheduler, {})
        if steps not in known:
            way = Way.steps(steps, scheduler, self.whole)
            way.sample(self.maker)
            known[steps] = way.seconds[0]
            self.say(f"{way.name}: {way.seconds[0]:.2f} s")
        return known[steps]

    def line(self):
        """Seconds without a step, and of each."""
        (least, most), scheduler = (max(2, self.maker.base_steps // 5), self.maker.base_steps), self.maker.base_scheduler
        short, long = self.of(scheduler, least), self.of(scheduler, most)
        # A busy machine may have it that more steps took no longer.
        slope = max((long - short) / max(most - least, 1), 0.1 * long / most)
        return long - most * slope, slope

    def nearest(self, scheduler, seconds):
        """The number of steps whose seconds are nearest, of the one that the line names and those that its error leads to."""
        start, slope = self.line()
        guess = round((seconds - start) / slope)
        for _ in range(3):
            guess = min(max(2, guess), 2 * self.maker.base_steps)
            if guess in self.known.get(scheduler, ()):
                break
            guess += round((seconds - self.of(scheduler, guess)) / slope)
        known = self.known[scheduler]
        return min(known, key=lambda steps: abs(known[steps] - seconds))
