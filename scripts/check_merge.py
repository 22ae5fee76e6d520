#!/usr/bin/env python3
"""Check a merged checkpoint of dlc with other people's code: transformers and PEFT.

    target/peerenv/bin/python scripts/check_merge.py BASE MERGED --adapter DIR [--adapter DIR=WEIGHT ...]
        [--tolerance X]

MERGED is what dlc made of the checkpoint BASE and these adapters, in this order; WEIGHT multiplies an adapter's
change (1 without it). Two things are looked at:

  keys     the Auto class that MERGED's `architectures` asks for makes that architecture of it, with no tensor
           missing, left over or of another shape. Left over in BASE too is no failure
  outputs  on random tokens it says what BASE says once PEFT has merged the adapters into it, to X (1e-4)

PEFT merges with merge_and_unload. It doesn't know Dual LoRA (arXiv 2512.03402), which is merged here by the paper's
formula, W + s relu(B A) o sign(D C), s = alpha / sqrt(r1 r2), sign(0) = -1. All is computed in f32; what PEFT
merged is rounded to the types that MERGED stores before it runs. A merged f16 or bf16 weight may still be
rounded the other way here and there, so such a checkpoint may need another X.

It needs torch, transformers and peft, which are not in scripts/requirements.txt: torch from PyPI brings its
CUDA libraries along, several GB in all. Make an environment for it once:

    python3 -m venv target/peerenv
    target/peerenv/bin/pip install torch transformers==5.23.0 peft==0.21.2 safetensors==0.8.0

Prints what was found. Exit status: 0 all is well, 1 a check failed, 2 bad usage or input.
"""

import argparse
import json
import math
import pathlib
import re
import sys
import warnings
from dataclasses import dataclass

import peft
import safetensors
import safetensors.torch
import torch
import transformers
from transformers.pytorch_utils import Conv1D

BATCH, LENGTH = 4, 24
FIRST_TOKEN = 3  # below lie padding and the like
PREFIX = "base_model.model."
DUAL_PART = re.compile(r"\.lora_(magnitude|direction)_([AB])(?:\.default)?\.weight$")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# By how an architecture's name ends.
AUTO_CLASSES = {
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "LMHeadModel": transformers.AutoModelForCausalLM,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForPreTraining": transformers.AutoModelForPreTraining,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
    "ForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
    "Model": transformers.AutoModel,
}


class BadInput(Exception):
    """An argument or file that can't be used, with the reason as its message."""


class CheckFailed(Exception):
    """A check that failed, with the reason as its message."""


@dataclass(frozen=True)
class Adapter:
    folder: pathlib.Path
    weight: float
    config: dict


@dataclass(frozen=True)
class Loaded:
    model: torch.nn.Module
    missing: set[str]
    unexpected: set[str]
    mismatched: set[str]


def read_json(path: pathlib.Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not an object")
    return value


def read_adapter(flag: str) -> Adapter:
    """`DIR` or `DIR=WEIGHT`."""
    folder, equals, weight = flag.rpartition("=")
    if not equals:
        folder, weight = flag, "1"
    try:
        factor = float(weight)
    except ValueError as error:
        raise BadInput(f"--adapter {flag}: `{weight}` is not a number") from error
    if not math.isfinite(factor):
        raise BadInput(f"--adapter {flag}: `{weight}` is not a number to multiply with")
    config = read_json(pathlib.Path(folder, "adapter_config.json"))
    if config.get("use_dora") and factor != 1:
        raise BadInput(f"--adapter {flag}: DoRA's norms were trained for the weight 1")
    return Adapter(pathlib.Path(folder), factor, config)


def architecture(checkpoint: pathlib.Path) -> tuple[str, type]:
    """The name in config.json, and the Auto class for it."""
    names = read_json(checkpoint / "config.json").get("architectures") or []
    if len(names) != 1:
        raise BadInput(f"{checkpoint / 'config.json'}: `architectures` doesn't name exactly one")
    for ending, auto_class in AUTO_CLASSES.items():
        if names[0].endswith(ending):
            return names[0], auto_class
    raise BadInput(f"{checkpoint / 'config.json'}: no Auto class is known for {names[0]}")


def load(checkpoint: pathlib.Path, auto_class: type) -> Loaded:
    """The model in f32, and what transformers says of its tensors. Raises whatever transformers raises."""
    model, found = auto_class.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in found["mismatched_keys"]}
    return Loaded(model.eval(), set(found["missing_keys"]), set(found["unexpected_keys"]), mismatched)


def shorten(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def check_keys(merged: Loaded, base: Loaded, name: str) -> None:
    if type(merged.model).__name__ != name:
        raise CheckFailed(f"keys: the Auto class makes a {type(merged.model).__name__} of MERGED, not a {name}")
    left_over = merged.unexpected - base.unexpected
    kinds = [("missing", merged.missing), ("left over", left_over), ("of another shape", merged.mismatched)]
    problems = [f"{len(names)} {kind} ({shorten(names)})" for kind, names in kinds if names]
    if problems:
        raise CheckFailed(f"keys: tensors of MERGED are {'; '.join(problems)}")
    remark = f"; {len(merged.unexpected)} are left over, as in BASE" if merged.unexpected else ""
    print(f"keys     ok: {name} with every tensor in its place{remark}")


def adapter_tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    path = adapter.folder / "adapter_model.safetensors"
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error


def bare_name(tensor: str) -> str:
    """The model's own name of a parameter that an adapter replaces."""
    name = tensor.removeprefix(PREFIX)
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")


def first_match(patterns: dict | None, module: str, otherwise: float) -> float:
    """PEFT's rule: the first pattern that fits the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def dual_change(parts: dict[str, torch.Tensor], config: dict, module: str) -> torch.Tensor:
    """s relu(B A) o sign(D C), [out, in]."""
    try:
        a, b = parts["magnitude_A"].float(), parts["magnitude_B"].float()
        c, d = parts["direction_A"].float(), parts["direction_B"].float()
    except KeyError as error:
        raise BadInput(f"{module}: lora_{error.args[0]} is missing") from error
    scale = config.get("scaling")
    if scale is None:
        alpha = first_match(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / math.sqrt(a.shape[0] * c.shape[0])
    return scale * torch.relu(b @ a) * torch.where(d @ c > 0, 1.0, -1.0)


def merge_dual(model: torch.nn.Module, adapter: Adapter) -> torch.nn.Module:
    changes: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for name, tensor in adapter_tensors(adapter).items():
        part = DUAL_PART.search(name)
        if part:
            module = name[: part.start()].removeprefix(PREFIX)
            changes.setdefault(module, {})[f"{part[1]}_{part[2]}"] = tensor
        else:
            replaced[bare_name(name)] = tensor
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in replaced.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise BadInput(f"{adapter.folder}: {name} is no parameter of the model, or has another shape")
            parameters[name].copy_(tensor)
        for name, parts in changes.items():
            module = modules.get(name)
            if not isinstance(module, (torch.nn.Linear, Conv1D)):
                raise BadInput(f"{adapter.folder}: {name} is no linear layer of the model")
            change = dual_change(parts, adapter.config, name)
            change = change.T if isinstance(module, Conv1D) else change
            if change.shape != module.weight.shape:
                raise BadInput(f"{adapter.folder}: {name} has another shape in the model")
            module.weight.add_(change)
    return model


def merge_peft(model: torch.nn.Module, adapter: Adapter) -> torch.nn.Module:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrapped = peft.PeftModel.from_pretrained(model, adapter.folder)
            merged = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises whatever its parts raise
        raise BadInput(f"peft {peft.__version__} cannot merge {adapter.folder}: {error}") from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise BadInput(f"peft {peft.__version__} on {adapter.folder}: {warning.message}")
    return merged


def merge(model: torch.nn.Module, adapter: Adapter) -> torch.nn.Module:
    """The adapter in the model, its change multiplied with the adapter's weight."""
    before = {name: value.clone() for name, value in model.named_parameters()} if adapter.weight != 1 else {}
    merge_kind = merge_dual if adapter.config.get("peft_type") == "DUAL_LORA" else merge_peft
    merged = merge_kind(model, adapter).eval()
    with torch.no_grad():
        for name, value in merged.named_parameters() if before else []:
            value.copy_(before[name].lerp(value, adapter.weight))
    return merged


def stored_types(checkpoint: pathlib.Path) -> dict[str, torch.dtype]:
    types = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():
                types[name] = DTYPES.get(file.get_slice(name).get_dtype(), torch.float32)
    return types


def round_as_stored(model: torch.nn.Module, checkpoint: pathlib.Path) -> None:
    """Rounds every parameter to the type that the checkpoint stores it in, or most of its tensors."""
    types = stored_types(checkpoint)
    kinds = list(types.values())
    usual = max(set(kinds), key=kinds.count) if kinds else torch.float32
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(value.to(types.get(name, usual)))


def outputs(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """All floating-point outputs, flattened; one sequence at a time, so that none needs padding."""
    found = []
    with torch.no_grad():
        for row in tokens:
            values = model(input_ids=row[None], return_dict=True)
            found += [value.flatten() for value in values.values() if isinstance(value, torch.Tensor)]
    return torch.cat(found)


def random_tokens(config: transformers.PretrainedConfig) -> torch.Tensor:
    text = config.get_text_config()
    length = min(LENGTH, getattr(text, "max_position_embeddings", None) or LENGTH)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_TOKEN, text.vocab_size, (BATCH, length), generator=generator)


def largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def check(base_folder: pathlib.Path, merged_folder: pathlib.Path, adapters: list[Adapter], tolerance: float) -> None:
    name, auto_class = architecture(merged_folder)
    try:
        base = load(base_folder, auto_class)
    except Exception as error:  # transformers raises whatever its parts raise
        raise BadInput(f"transformers cannot load {base_folder}: {error}") from error
    given = {bare_name(tensor) for adapter in adapters for tensor in adapter_tensors(adapter)}
    unknown = (base.missing | base.mismatched) - given
    if unknown:
        raise BadInput(f"{base_folder} and the adapters lack tensors of {name}: {shorten(unknown)}")
    try:
        merged = load(merged_folder, auto_class)
    except Exception as error:
        raise CheckFailed(f"keys: transformers cannot load {merged_folder}: {error}") from error
    check_keys(merged, base, name)

    tokens = random_tokens(base.model.config)
    plain = outputs(base.model, tokens)
    reference = base.model
    for adapter in adapters:
        reference = merge(reference, adapter)
    round_as_stored(reference, merged_folder)
    expected, got = outputs(reference, tokens), outputs(merged.model, tokens)
    if expected.shape != got.shape:
        raise CheckFailed(f"outputs: {got.numel()} values, {expected.numel()} expected")
    difference = largest(got - expected)
    moved = largest(expected - plain)
    remark = f"largest difference {difference:.2g}, {tolerance:g} allowed; the adapters move them by {moved:.2g}"
    if not difference <= tolerance:
        raise CheckFailed(f"outputs: {remark}")
    print(f"outputs  ok: {remark}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=pathlib.Path, metavar="BASE", help="the checkpoint that was merged into")
    parser.add_argument("merged", type=pathlib.Path, metavar="MERGED", help="the merged checkpoint")
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="DIR[=WEIGHT]", help="an adapter; may come several times"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="X", help="of an output (default: 1e-4)")
    arguments = parser.parse_args()
    for folder in (arguments.base, arguments.merged):
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} is not a checkpoint folder: it has no config.json")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        adapters = [read_adapter(flag) for flag in arguments.adapter]
        check(arguments.base, arguments.merged, adapters, arguments.tolerance)
    except BadInput as error:
        print(f"check_merge.py: {error}", file=sys.stderr)
        return 2
    except CheckFailed as failure:
        print(f"FAILED   {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
