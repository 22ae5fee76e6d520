"""What the scripts share that load bundles with other people's libraries.

Each script takes bundles of the goldens in fixtures/goldens, in folders named GOLDEN-PROFILE, gives them the golden's
inputs by the library's own classes, and compares the outputs with the recorded ones. A model that a library is known
to fail on stands in the script with the library's own fault: the check fails where the library does better too.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy
from safetensors.numpy import load_file

GOLDENS = pathlib.Path(__file__).parent.parent / "fixtures" / "goldens"
TOLERANCE = 1e-4


class Differs(Exception):
    """An output that isn't the recorded one, with the difference as its message."""


@dataclass
class Bundle:
    """A bundle of a golden, and what transformers or diffusers recorded for that."""

    folder: pathlib.Path
    golden: str
    profile: str
    config: dict = field(init=False)
    tensors: dict[str, numpy.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads((GOLDENS / self.golden / "config.json").read_text(encoding="utf-8"))
        self.tensors = load_file(GOLDENS / self.golden / "golden.safetensors")

    @property
    def family(self) -> str:
        return self.config.get("model_type") or self.config["_class_name"]

    @property
    def is_decoder(self) -> bool:
        return "output.left_padded_logits" in self.tensors

    @property
    def architecture(self) -> str:
        """The class of an encoder that saved it, without the family: `ForMaskedLM`, `Model` ..."""
        _, found, head = self.config["architectures"][0].rpartition("For")
        return found + head if found else "Model"

    @property
    def inputs(self) -> dict[str, numpy.ndarray]:
        """The inputs of the plain run."""
        inputs = {name.removeprefix("input."): t for name, t in self.tensors.items() if name.startswith("input.")}
        return {name: t for name, t in inputs.items() if "left_padded" not in name}

    def compare(self, output: str, found: numpy.ndarray, of: str, kept: numpy.ndarray | None = None) -> None:
        """Compares `found` with the recorded `output`, where `kept` isn't 0. Raises Differs."""
        expected = self.tensors[f"output.{output}"]
        close(of, found, expected, kept)

    @property
    def dtype(self) -> str:
        return recorded(self.folder, "  dtype")


def recorded(bundle: pathlib.Path, key: str) -> str:
    """The plain value of a key of the bundle's manifest, indented as it stands there."""
    lines = (bundle / "dlc.yaml").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix(f"{key}: ") for line in lines if line.startswith(f"{key}: "))


def close(of: str, found: numpy.ndarray, expected: numpy.ndarray, kept: numpy.ndarray | None = None) -> None:
    """Raises Differs where an entry, of those where `kept` isn't 0, differs by more than the tolerance."""
    if found.shape != expected.shape:
        raise Differs(f"{of}: the shape is {list(found.shape)}, not {list(expected.shape)}")
    difference = numpy.abs(found.astype(numpy.float64) - expected)
    if kept is not None:
        difference = difference[kept.astype(bool)]
    if not difference.max() <= TOLERANCE:  # NaN is none either
        raise Differs(f"{of}: differs by {difference.max():.2e}, more than {TOLERANCE}")


@dataclass
class Consumer:
    """A library, and its own faults: by family or bundle, the part of its error that shows the fault, and the fault."""

    name: str
    version: str
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)

    def check(self, bundles: Iterable[Bundle], load: Callable[[Bundle], str], results: pathlib.Path | None) -> bool:
        """Prints a line for each bundle and adds one to the results; whether all is as it was known to be."""
        good = True
        rows = []
        for bundle in bundles:
            known = self.faults.get(bundle.folder.name) or self.faults.get(bundle.family)
            shown, fault = known or (None, None)
            try:
                verdict, told = "ok", load(bundle)
            except Exception as error:  # a library fails with any exception
                verdict, told = "fails", " ".join(f"{type(error).__name__}: {error}".split())
            expected = (verdict == "ok") if shown is None else (verdict == "fails" and shown in told)
            good &= expected
            mark = "FAILED " if not expected else "ok     " if verdict == "ok" else "known  "
            print(f"{mark} {self.name} {self.version}: {bundle.golden}, {bundle.profile}, {bundle.dtype}: {told[:300]}", flush=True)
            told = (fault or told[:300]) if verdict == "fails" else None
            rows.append(self.row(bundle.family, bundle.profile, bundle.dtype, told))
        if results:
            write_rows(rows, results)
        return good

    def row(self, family: str, profile: str, dtype: str, fault: str | None) -> dict:
        return {
            "consumer": self.name,
            "version": self.version,
            "family": family,
            "profile": profile,
            "dtype": dtype,
            "fault": fault,
        }


def write_rows(rows: Iterable[dict], results: pathlib.Path) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def bundle_of(folder: str) -> Bundle:
    path = pathlib.Path(folder)
    golden, _, profile = path.name.rpartition("-")
    if not (path / "dlc.yaml").is_file() or not (GOLDENS / golden / "golden.safetensors").is_file():
        raise argparse.ArgumentTypeError(f"{folder} is no bundle of a golden in a folder named GOLDEN-PROFILE")
    return Bundle(path, golden, profile)


def run(consumer: Consumer, load: Callable[[Bundle], str], description: str) -> None:
    """The command line of a script: bundles, and where results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=bundle_of, metavar="BUNDLE", help="a folder named GOLDEN-PROFILE")
    parser.add_argument("--results", type=pathlib.Path, metavar="FILE", help="add a line of JSON for each bundle")
    arguments = parser.parse_args()
    sys.exit(0 if consumer.check(arguments.bundles, load, arguments.results) else 1)
