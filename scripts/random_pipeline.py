#!/usr/bin/env python3
"""A Stable Diffusion 1.5 pipeline of random weights, to time one of a size that nobody wants to download.

    "$(scripts/pyenv.sh)" scripts/random_pipeline.py OUT [--small] [--seed N]

Writes the folder OUT in the layout of diffusers: the U-Net (860 million parameters), the text model of CLIP ViT-L/14 (123
million), the AutoencoderKL (84 million), the scheduler, and a tokenizer of 49408 tokens whose merges are made up. Tensors are
f16, 2.1 GB in all, written one by one. `--small` keeps the layout and makes every layer a tenth as wide, and pictures 64 x 64.

Weights are scaled so that values stay finite in f16: what enters a sum is kept, what it adds is small.

Exit status: 0 done, 1 a file can't be written, 2 bad usage.
"""

import argparse
import json
import math
import pathlib
import sys
from dataclasses import dataclass

import numpy

# Numbers that are drawn at once.
CHUNK = 1 << 22
# The share of a unit of variance that a block adds to its residual.
BRANCH = 0.1
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """Widths of the networks; the depths are Stable Diffusion's."""

    unet: tuple[int, ...]
    vae: tuple[int, ...]
    text: int
    # Height and width of the latents.
    latents: int
    vocabulary: int = 49408
    tokens: int = 77
    text_layers: int = 12
    head_width: int = 64


FULL = Shape(unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), text=768, latents=64)
SMALL = Shape(unet=(32, 64, 128, 128), vae=(32, 64, 128, 128), text=64, latents=8, head_width=16)

Tensors = dict[str, tuple[int, ...]]


def linear(name: str, out: int, inner: int, bias: bool = True) -> Tensors:
    return {f"{name}.weight": (out, inner)} | ({f"{name}.bias": (out,)} if bias else {})


def conv(name: str, out: int, inner: int, size: int = 3) -> Tensors:
    return {f"{name}.weight": (out, inner, size, size), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Tensors:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name: str, out: int, inner: int, level: int | None) -> Tensors:
    """`level` is the width of the embedded noise level, for the U-Net."""
    tensors = norm(f"{name}.norm1", inner) | conv(f"{name}.conv1", out, inner)
    if level is not None:
        tensors |= linear(f"{name}.time_emb_proj", out, level)
    tensors |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out)
    return tensors | (conv(f"{name}.conv_shortcut", out, inner, 1) if out != inner else {})


def transformer(name: str, width: int, text: int) -> Tensors:
    """A layer of attention to the image and to the text, between two convolutions of single places."""
    block = f"{name}.transformer_blocks.0"
    tensors = norm(f"{name}.norm", width) | conv(f"{name}.proj_in", width, width, 1)
    for at, source in ((1, width), (2, text)):
        tensors |= norm(f"{block}.norm{at}", width) | linear(f"{block}.attn{at}.to_q", width, width, bias=False)
        tensors |= linear(f"{block}.attn{at}.to_k", width, source, bias=False)
        tensors |= linear(f"{block}.attn{at}.to_v", width, source, bias=False)
        tensors |= linear(f"{block}.attn{at}.to_out.0", width, width)
    tensors |= norm(f"{block}.norm3", width) | linear(f"{block}.ff.net.0.proj", 8 * width, width)
    tensors |= linear(f"{block}.ff.net.2", width, 4 * width)
    return tensors | conv(f"{name}.proj_out", width, width, 1)


def unet_tensors(shape: Shape) -> Tensors:
    widths, level = shape.unet, 4 * shape.unet[0]
    tensors = conv("conv_in", widths[0], 4)
    tensors |= linear("time_embedding.linear_1", level, widths[0]) | linear("time_embedding.linear_2", level, level)
    # What later stages read of earlier ones.
    skips, inner = [widths[0]], widths[0]
    for at, width in enumerate(widths):
        stage = f"down_blocks.{at}"
        for layer in range(2):
            tensors |= resnet(f"{stage}.resnets.{layer}", width, inner, level)
            if at < 3:
                tensors |= transformer(f"{stage}.attentions.{layer}", width, shape.text)
            inner = width
            skips.append(width)
        if at < 3:
            tensors |= conv(f"{stage}.downsamplers.0.conv", width, width)
            skips.append(width)
    tensors |= resnet("mid_block.resnets.0", inner, inner, level) | resnet("mid_block.resnets.1", inner, inner, level)
    tensors |= transformer("mid_block.attentions.0", inner, shape.text)
    for at, width in enumerate(reversed(widths)):
        stage = f"up_blocks.{at}"
        for layer in range(3):
            tensors |= resnet(f"{stage}.resnets.{layer}", width, inner + skips.pop(), level)
            if at > 0:
                tensors |= transformer(f"{stage}.attentions.{layer}", width, shape.text)
            inner = width
        if at < 3:
            tensors |= conv(f"{stage}.upsamplers.0.conv", width, width)
    return tensors | norm("conv_norm_out", inner) | conv("conv_out", 4, inner)


def vae_middle(name: str, width: int) -> Tensors:
    attention = f"{name}.attentions.0"
    tensors = norm(f"{attention}.group_norm", width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        tensors |= linear(f"{attention}.{part}", width, width)
    return tensors | resnet(f"{name}.resnets.0", width, width, None) | resnet(f"{name}.resnets.1", width, width, None)


def vae_tensors(shape: Shape) -> Tensors:
    widths, inner = shape.vae, shape.vae[0]
    tensors = conv("encoder.conv_in", inner, 3)
    for at, width in enumerate(widths):
        for layer in range(2):
            tensors |= resnet(f"encoder.down_blocks.{at}.resnets.{layer}", width, inner, None)
            inner = width
        if at < 3:
            tensors |= conv(f"encoder.down_blocks.{at}.downsamplers.0.conv", width, width)
    tensors |= vae_middle("encoder.mid_block", inner)
    tensors |= norm("encoder.conv_norm_out", inner) | conv("encoder.conv_out", 8, inner)
    tensors |= conv("quant_conv", 8, 8, 1) | conv("post_quant_conv", 4, 4, 1)
    tensors |= conv("decoder.conv_in", inner, 4) | vae_middle("decoder.mid_block", inner)
    for at, width in enumerate(reversed(widths)):
        for layer in range(3):
            tensors |= resnet(f"decoder.up_blocks.{at}.resnets.{layer}", width, inner, None)
            inner = width
        if at < 3:
            tensors |= conv(f"decoder.up_blocks.{at}.upsamplers.0.conv", width, width)
    return tensors | norm("decoder.conv_norm_out", inner) | conv("decoder.conv_out", 3, inner)


def text_tensors(shape: Shape) -> Tensors:
    width = shape.text
    tensors = {
        "text_model.embeddings.token_embedding.weight": (shape.vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (shape.tokens, width),
    }
    for at in range(shape.text_layers):
        layer = f"text_model.encoder.layers.{at}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= linear(f"{layer}.self_attn.{part}", width, width)
        tensors |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        tensors |= linear(f"{layer}.mlp.fc1", 4 * width, width) | linear(f"{layer}.mlp.fc2", width, 4 * width)
    return tensors | norm("text_model.final_layer_norm", width)


# The ends of names of what is added to a residual.
ADDED = ("conv2.weight", "proj_out.weight", "to_out.0.weight", "ff.net.2.weight", "out_proj.weight", "fc2.weight")


def deviation(name: str, dims: tuple[int, ...]) -> float:
    """The standard deviation of a matrix's entries, or of a kernel's."""
    if name.endswith("embedding.weight"):
        return 0.1
    gain = BRANCH if name.endswith((*ADDED, "conv_out.weight")) else 1.0
    return gain / math.sqrt(math.prod(dims[1:]))


def pieces(name: str, dims: tuple[int, ...], random: numpy.random.Generator):
    """The tensor's entries, some at a time."""
    left = math.prod(dims)
    scale = None if len(dims) == 1 else deviation(name, dims)
    while left > 0:
        count = min(left, CHUNK)
        left -= count
        if scale is None:
            value = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
            yield numpy.full(count, value, numpy.float16)
        else:
            yield (random.standard_normal(count, numpy.float32) * scale).astype(numpy.float16)


def write_tensors(path: pathlib.Path, tensors: Tensors, random: numpy.random.Generator):
    """Writes a safetensors file, holding a piece of a tensor at a time."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors.items():
        end = offset + 2 * math.prod(dims)
        header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in tensors.items():
            for piece in pieces(name, dims, random):
                file.write(piece.tobytes())


def unet_config(shape: Shape) -> dict:
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.42.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": shape.unet,
        "center_input_sample": False,
        "cross_attention_dim": shape.text,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": shape.latents,
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    }


def vae_config(shape: Shape) -> dict:
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.42.0",
        "act_fn": "silu",
        "block_out_channels": shape.vae,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 8 * shape.latents,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def text_config(shape: Shape) -> dict:
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": shape.text,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * shape.text,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": shape.tokens,
        "model_type": "clip_text_model",
        "num_attention_heads": shape.text // shape.head_width,
        "num_hidden_layers": shape.text_layers,
        "pad_token_id": 1,
        "projection_dim": shape.text,
        "torch_dtype": "float16",
        "vocab_size": shape.vocabulary,
    }


SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.42.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.0",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def alphabet() -> list[str]:
    """What stands for the 256 bytes in the vocabularies of GPT-2 and CLIP."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + at) for at in range(256 - len(plain))]


def made_up_merges(count: int) -> list[tuple[str, str]]:
    """Pairs of letters, then what follows such pairs, within words and at their ends."""
    letters = [chr(ord("a") + at) for at in range(26)]
    merges, starts = [], letters
    while len(merges) < count:
        pairs = [(start, letter) for start in starts for letter in letters]
        merges += pairs + [(start, f"{letter}</w>") for start, letter in pairs]
        starts = [start + letter for start, letter in pairs]
    return merges[:count]


def write_tokenizer(folder: pathlib.Path, shape: Shape):
    signs = alphabet()
    merges = made_up_merges(shape.vocabulary - 2 * len(signs) - 2)
    tokens = signs + [f"{sign}</w>" for sign in signs] + ["".join(pair) for pair in merges] + [START, END]
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = special | {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": shape.tokens,
        "tokenizer_class": "CLIPTokenizer",
    }
    vocabulary = json.dumps({token: at for at, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: pathlib.Path, data: dict):
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# Folder, what makes the tensors, their file, what makes the configuration.
NETWORKS = [
    ("unet", unet_tensors, "diffusion_pytorch_model.safetensors", unet_config),
    ("text_encoder", text_tensors, "model.safetensors", text_config),
    ("vae", vae_tensors, "diffusion_pytorch_model.safetensors", vae_config),
]


def write(out: pathlib.Path, shape: Shape = FULL, seed: int = 0) -> dict:
    """Writes the pipeline; returns a row for a report, sizes in numbers."""
    parameters, largest = {}, 0
    for name, tensors_of, file, config_of in NETWORKS:
        folder, tensors = out / name, tensors_of(shape)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / file, tensors, numpy.random.default_rng([seed, len(parameters)]))
        write_json(folder / "config.json", config_of(shape))
        sizes = [math.prod(dims) for dims in tensors.values()]
        parameters[name], largest = sum(sizes), max(largest, *sizes)
    for name in ("scheduler", "tokenizer"):
        (out / name).mkdir(exist_ok=True)
    write_tokenizer(out / "tokenizer", shape)
    write_json(out / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(out / "model_index.json", INDEX)
    return {"parameters": parameters, "largest_tensor": largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        written = write(arguments.out, SMALL if arguments.small else FULL, arguments.seed)
    except OSError as error:
        print(f"random_pipeline.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
