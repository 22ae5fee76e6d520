"""What the scripts share that load bundles with other people's libraries.

Each script takes bundles of the goldens in fixtures/goldens, in folders named GOLDEN-PROFILE, gives them the golden's
inputs by the library's own classes, and compares the outputs with the recorded ones. A bundle that a library is known
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

Arrays = dict[str, numpy.ndarray]


class Differs(Exception):
    """An output that isn't the recorded one, with the difference as its message."""


@dataclass
class Bundle:
    """A bundle of a golden, and what transformers or diffusers recorded for that."""

    folder: pathlib.Path
    golden: str
    profile: str
    config: dict = field(init=False)
    tensors: Arrays = field(init=False)

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
    def inputs(self) -> Arrays:
        """The inputs of the plain run."""
        inputs = {name.removeprefix("input."): t for name, t in self.tensors.items() if name.startswith("input.")}
        return {name: t for name, t in inputs.items() if "left_padded" not in name}

    @property
    def left_padded(self) -> Arrays:
        """The inputs of the run of a decoder whose sequences are padded on the left."""
        names = ("attention_mask", "position_ids")
        padded = {name: self.tensors[f"input.left_padded_{name}"] for name in names}
        return {"input_ids": self.inputs["input_ids"], **padded}

    @property
    def outputs(self) -> list[str]:
        """The outputs of the plain run."""
        names = [name.removeprefix("output.") for name in self.tensors if name.startswith("output.")]
        return [name for name in names if "left_padded" not in name and "after" not in name]

    def compare(self, output: str, found: numpy.ndarray, of: str, kept: numpy.ndarray | None = None) -> None:
        """Compares `found` with the recorded `output`, where `kept` isn't 0. Raises Differs."""
        expected = self.tensors[f"output.{output}"]
        # A discriminator's logits have a last axis of one entry (docs/models.md).
        if found.shape == (*expected.shape, 1):
            found = found[..., 0]
        close(of, found, expected, kept)

    def compare_encoder(self, found: Arrays) -> None:
        """Compares what an encoder returned, where the mask isn't 0. Raises Differs."""
        mask = self.inputs["attention_mask"]
        for output in self.outputs:
            by_token = self.tensors[f"output.{output}"].shape[:2] == mask.shape
            self.compare(output, found[output], output, mask if by_token else None)

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
class Graph:
    """An ONNX file as a library loaded it: the shapes of its inputs, and what computes the outputs of some."""

    shapes: dict[str, list]
    compute: Callable[[Arrays], Arrays]
    # Whether it takes the sequences of a decoder as a batch.
    batches: bool

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs. Leaves out what the graph has no input for."""
        return self.compute({name: feed for name, feed in feeds.items() if name in self.shapes})

    def empty_caches(self, batch: int) -> Arrays:
        caches = {name: shape for name, shape in self.shapes.items() if name.startswith("past_key_values.")}
        return {name: numpy.zeros([batch, shape[1], 0, shape[3]], "f4") for name, shape in caches.items()}

    def check(self, bundle: Bundle) -> str:
        """Runs the bundle's inputs and compares the outputs. Raises Differs, and what the library raises."""
        if bundle.is_decoder:
            self.check_decoder(bundle)
        elif "attention_mask" in bundle.inputs:
            bundle.compare_encoder(self.run(bundle.inputs))
        else:
            self.check_denoiser(bundle)
        return f"{len(self.shapes)} inputs"

    def check_decoder(self, bundle: Bundle) -> None:
        """Whole sequences, and two tokens after a cache of seven; of batches also sequences padded on the left."""
        ids, mask = (bundle.inputs[name] for name in ("input_ids", "attention_mask"))
        if self.batches:
            bundle.compare("logits", self.decode(ids, mask)["logits"], "sequences", mask)
            left = {**bundle.left_padded, **self.empty_caches(len(ids))}
            padded = left["attention_mask"]
            bundle.compare("left_padded_logits", self.run(left)["logits"], "padded on the left", padded)
        else:
            whole = [self.decode(ids[[row]], mask[[row]])["logits"] for row in range(len(ids))]
            bundle.compare("logits", numpy.concatenate(whole), "sequences", mask)
        # GroupQueryAttention takes several tokens after a past for one sequence only.
        continued = numpy.concatenate([self.decode_after_7(ids[[row], :9]) for row in range(len(ids))])
        bundle.compare("logits_after_7_for_2", continued, "2 tokens after 7 cached")

    def decode(self, ids: numpy.ndarray, mask: numpy.ndarray, caches: Arrays | None = None) -> Arrays:
        past = mask.shape[1] - ids.shape[1]
        positions = numpy.broadcast_to(numpy.arange(past, mask.shape[1]), ids.shape)
        caches = self.empty_caches(len(ids)) if caches is None else caches
        return self.run({"input_ids": ids, "attention_mask": mask, "position_ids": positions, **caches})

    def decode_after_7(self, ids: numpy.ndarray) -> numpy.ndarray:
        mask = numpy.ones_like(ids)
        before = self.decode(ids[:, :7], mask[:, :7])
        caches = {name.replace("present", "past_key_values"): cache for name, cache in before.items() if name != "logits"}
        return self.decode(ids[:, 7:], mask, caches)["logits"]

    def check_denoiser(self, bundle: Bundle) -> None:
        inputs = bundle.inputs
        inputs["timestep"] = numpy.atleast_1d(inputs["timestep"]).astype("f4")
        text = inputs.get("encoder_hidden_states")
        if text is not None:
            inputs.setdefault("encoder_attention_mask", numpy.ones(text.shape[:2], "i8"))
        bundle.compare("sample", self.run(inputs)["out_sample"], "sample")


def check_choices(text: list[int], given: int, ends: list[int], logits: Callable[[list[int]], numpy.ndarray]) -> None:
    """Whether each token after the `given` ones is the likeliest after those before it but for `ends`. Raises Differs."""
    for length in range(given, len(text)):
        scores = numpy.array(logits(text[:length]))
        # Tiny goldens keep the ids of large vocabularies.
        scores[[end for end in ends if end < len(scores)]] = -numpy.inf
        if text[length] != scores.argmax():
            raise Differs(f"generate: token {length} is {text[length]}, not {scores.argmax()}")


# The part of a library's error that shows its fault, and the fault.
Fault = tuple[str, str]


def known(names: str, *fault: str) -> dict[str, Fault]:
    """The fault by each of the names."""
    return dict.fromkeys(names.split(), fault)


@dataclass
class Consumer:
    """A library, and its own faults by golden, or by bundle."""

    name: str
    version: str
    faults: dict[str, Fault] = field(default_factory=dict)

    def check(self, bundles: Iterable[Bundle], load: Callable[[Bundle], str], results: pathlib.Path | None) -> bool:
        """Prints a line for each bundle and adds one to the results; whether all is as it was known to be."""
        good = True
        rows = []
        for bundle in bundles:
            known = self.faults.get(bundle.folder.name) or self.faults.get(bundle.golden)
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
            rows.append(self.row(bundle.family, bundle.golden, bundle.profile, bundle.dtype, told))
        if results:
            write_rows(rows, results)
        return good

    def row(self, family: str, golden: str, profile: str, dtype: str, fault: str | None) -> dict:
        """A line of the results."""
        row = {"consumer": self.name, "version": self.version, "family": family, "golden": golden}
        return {**row, "profile": profile, "dtype": dtype, "fault": fault}


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
