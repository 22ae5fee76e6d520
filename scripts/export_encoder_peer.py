#!/usr/bin/env python3
"""Export an encoder checkpoint with torch.onnx: the peer of `dlc compile` on encoders.

    target/peerenv/bin/python scripts/export_encoder_peer.py CHECKPOINT OUT.onnx [--fuse]

OUT.onnx, one file, is transformers' AutoModel without its head, in f32, for any batch and sequence: input_ids,
attention_mask and, where the model has token types, token_type_ids in, last_hidden_state out. Attention
is transformers' plain one (`eager`), which ONNX Runtime runs faster here than what it makes of torch's
fused one. Before OUT.onnx is there it has been run on a padded batch of another shape, and has said what
torch says to 1e-4.

  (default)  torch.onnx.export(dynamo=True), the exporter that torch recommends
  --fuse     torch.onnx.export(dynamo=False), then ONNX Runtime's own `onnxruntime.transformers.optimizer`,
             which knows that exporter's patterns: Attention, SkipLayerNormalization, BiasGelu,
             EmbedLayerNormalization of com.microsoft. For BERT alone

Its path is the only line on stdout. An existing OUT.onnx is replaced; an interrupted run leaves it as it was.
scripts/check_minilm.py looks for one at CHECKPOINT/onnx/model.onnx.

It needs torch and transformers, which are not in scripts/requirements.txt: torch from PyPI brings its
CUDA libraries along, several GB in all. Make an environment for it once:

    python3 -m venv target/peerenv
    target/peerenv/bin/pip install onnx==1.23.2 onnxruntime==1.31.1 onnxscript==0.7.2 torch transformers==5.23.0

Exit status: 0 done, 1 the export failed or says something else than torch, 2 bad usage or input.
"""

import argparse
import contextlib
import inspect
import logging
import os
import pathlib
import sys
import tempfile
import warnings

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import torch
import transformers
from onnxruntime.transformers import optimizer

TOLERANCE = 1e-4
FUSIBLE = {"bert"}
OUTPUT = "last_hidden_state"


class BadInput(Exception):
    """A checkpoint that can't be used, with the reason as its message."""


class ExportFailed(Exception):
    """The peer did not do its work, with the reason as its message."""


class Encoder(torch.nn.Module):
    """The model with its tensors in a fixed order, and only the last hidden state out."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)[OUTPUT]


def load(checkpoint: pathlib.Path) -> torch.nn.Module:
    try:
        model, found = transformers.AutoModel.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever its parts raise
        raise BadInput(f"transformers cannot load {checkpoint}: {error}") from error
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise BadInput(f"{checkpoint} lacks {len(missing)} tensors of the encoder, {missing[0]} for one")
    return model


def input_names(model: torch.nn.Module) -> list[str]:
    names = ["input_ids", "attention_mask"]
    has_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if has_types and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return names


def example(model: torch.nn.Module, names: list[str], batch: int, sequence: int) -> tuple[torch.Tensor, ...]:
    """Random inputs, whose last row ends with two tokens of padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    types = torch.zeros_like(ids)
    mask[-1, -2:] = 0
    types[:, sequence // 2 :] = 1
    ids[mask == 0] = model.config.pad_token_id or 0
    return tuple({"input_ids": ids, "attention_mask": mask, "token_type_ids": types}[name] for name in names)


def export(encoder: Encoder, out: pathlib.Path, dynamo: bool) -> None:
    names = encoder.names
    options = {"input_names": names, "output_names": [OUTPUT], "dynamo": dynamo}
    if dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        options |= {"dynamic_shapes": (tuple(axes for _ in names),), "external_data": False, "verbose": False}
    else:
        options |= {"dynamic_axes": {name: {0: "batch", 1: "sequence"} for name in [*names, OUTPUT]}}
    try:
        with torch.no_grad():
            torch.onnx.export(encoder, example(encoder.model, names, 2, 8), out, **options)
    except Exception as error:  # the exporters raise whatever their parts raise
        raise ExportFailed(f"torch {torch.__version__} cannot export it: {error}") from error


def fuse(source: pathlib.Path, out: pathlib.Path, config: transformers.PretrainedConfig) -> None:
    heads, width = config.num_attention_heads, config.hidden_size
    model = optimizer.optimize_model(str(source), model_type="bert", num_heads=heads, hidden_size=width)
    if model.get_fused_operator_statistics().get("Attention", 0) != config.num_hidden_layers:
        raise ExportFailed(f"onnxruntime {onnxruntime.__version__} did not find the attention of every layer")
    model.save_model_to_file(str(out))


def check(encoder: Encoder, out: pathlib.Path) -> None:
    tensors = example(encoder.model, encoder.names, 3, 13)
    with torch.no_grad():
        expected = encoder(*tensors).numpy()
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(encoder.names, tensors, strict=True)}
    got = session.run([OUTPUT], feed)[0]
    real = feed["attention_mask"] == 1  # fused attention and torch may differ where nothing is asked
    difference = float(np.abs(got - expected)[real].max())
    if not difference <= TOLERANCE:
        raise ExportFailed(f"the export says something else than torch: it differs by {difference:.2g}")


def run(checkpoint: pathlib.Path, out: pathlib.Path, fused: bool) -> None:
    model = load(checkpoint)
    if fused and model.config.model_type not in FUSIBLE:
        raise BadInput(f"--fuse knows {', '.join(sorted(FUSIBLE))} alone, not {model.config.model_type}")
    encoder = Encoder(model, input_names(model)).eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=out.parent) as folder:
        made = pathlib.Path(folder, "exported.onnx")
        export(encoder, made, dynamo=not fused)
        if fused:
            exported, made = made, pathlib.Path(folder, "fused.onnx")
            fuse(exported, made, model.config)
        check(encoder, made)
        made.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path, metavar="CHECKPOINT", help="a checkpoint folder")
    parser.add_argument("out", type=pathlib.Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--fuse", action="store_true", help="torch's older exporter and ONNX Runtime's optimizer")
    arguments = parser.parse_args()
    if not (arguments.checkpoint / "config.json").is_file():
        parser.error(f"{arguments.checkpoint} is not a checkpoint folder: it has no config.json")
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)  # `check` looks at what transformers and the exporters warn of
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(arguments.checkpoint, arguments.out, arguments.fuse)
    except BadInput as error:
        print(f"export_encoder_peer.py: {error}", file=sys.stderr)
        return 2
    except ExportFailed as failure:
        print(f"export_encoder_peer.py: {failure}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
