#!/usr/bin/env python3
"""Check that Optimum's pipelines load bundles of Stable Diffusion as they are and make the pictures that dlc makes.

    "$(scripts/pyenv.sh hf)" scripts/check_optimum_pipelines.py DLC BUNDLE...

BUNDLE is what `dlc compile fixtures/pipelines/NAME --deploy optimum` wrote into a folder called NAME; DLC is the
command. `ORTDiffusionPipeline` loads it, and makes pictures of the fixture's prompts from the fixture's latents: in 6
steps of DDIM, with and without a negative prompt, which `dlc sample` must make of the same bundle; and in as many steps
as diffusers recorded its own pictures with. Pixels may differ by 1 of 255, recorded ones by 2/255 of numbers from -1 to 1.
Its encoder must make of the fixture's pictures the latents that were recorded.

Exit status: 0 all equal, 1 a difference, 2 bad usage.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from importlib.metadata import version

import diffusers
import numpy
import torch
from optimum import onnxruntime as optimum
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from consumers import Differs, recorded

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "pipelines"
CLASSES = {"StableDiffusionPipeline": "ORTStableDiffusionPipeline", "StableDiffusionXLPipeline": "ORTStableDiffusionXLPipeline"}
VERSION = version("optimum-onnx")
STEPS = 6
# Of what diffusers recorded, as numbers from -1 to 1.
TOLERANCE = 2 / 255


class Golden:
    """The fixture's prompts and latents, and the pictures that diffusers made of them."""

    def __init__(self, name: str) -> None:
        with safe_open(FIXTURES / name / "golden.safetensors", "numpy") as file:
            texts = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        self.prompts: list[str] = json.loads(texts["prompts"])
        self.negative: str = texts["negative"]
        self.guidance = float(texts["guidance"])
        self.steps = int(texts["steps"])

    @property
    def latents(self) -> numpy.ndarray:
        return self.tensors["latents"]


def open_pipeline(bundle: pathlib.Path) -> optimum.ORTDiffusionPipeline:
    """The pipeline of the class that is its own, with DDIM."""
    pipe = optimum.ORTDiffusionPipeline.from_pretrained(bundle)
    wanted = CLASSES[json.loads((bundle / "model_index.json").read_text(encoding="utf-8"))["_class_name"]]
    if type(pipe).__name__ != wanted:
        raise Differs(f"it is a {type(pipe).__name__}, not a {wanted}")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: optimum.ORTDiffusionPipeline, golden: Golden, steps: int, negative: str | None) -> numpy.ndarray:
    """Numbers from 0 to 1, `[images, height, width, channels]`."""
    texts = golden.prompts
    negatives = None if negative is None else [negative] * len(texts)
    latents = torch.from_numpy(golden.latents.copy())
    made = pipe(
        texts, negative_prompt=negatives, num_inference_steps=steps, guidance_scale=golden.guidance, latents=latents, output_type="np"
    )
    return made.images


def ours(dlc: str, bundle: pathlib.Path, golden: Golden, negative: str | None) -> numpy.ndarray:
    """Pixels from 0 to 255, likewise."""
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        noise, picture = pathlib.Path(folder, "noise.safetensors"), pathlib.Path(folder, "picture.png")
        for row, prompt in enumerate(golden.prompts):
            save_file({"latents": golden.latents[row : row + 1].copy()}, noise)
            command = [dlc, "sample", bundle, "--prompt", prompt, "--noise", noise, "--scheduler", "ddim", "--steps", STEPS]
            command += ["--guidance", golden.guidance, "--scale", "1", "--quiet", "-o", picture]
            command += [] if negative is None else ["--negative-prompt", negative]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            pictures.append(numpy.asarray(Image.open(picture).convert("RGB")))
    return numpy.stack(pictures)


def encoded(pipe: optimum.ORTDiffusionPipeline, name: str) -> float:
    """How far latents of pictures are from those that diffusers recorded."""
    with safe_open(FIXTURES / name / "image.safetensors", "numpy") as file:
        images, expected = (file.get_tensor(f"vae_encoder{key}") for key in ("<images", ">latents"))
    made = pipe.vae_encoder(sample=images, return_dict=True).latents
    return float(numpy.abs(numpy.asarray(made) * pipe.vae_decoder.config.scaling_factor - expected).max())


def check(dlc: str, bundle: pathlib.Path) -> str:
    """Raises Differs, and what the library raises."""
    golden, pipe = Golden(bundle.name), open_pipeline(bundle)
    worst, apart = 0, 0.0
    # Without a negative prompt a pipeline of CLIP's texts is led away from the empty one.
    for suffix, negative in (("", None), ("_negative", golden.negative)):
        found = (theirs(pipe, golden, STEPS, negative) * 255).round().astype(int)
        worst = max(worst, numpy.abs(found - ours(dlc, bundle, golden, negative)).max())
        expected = golden.tensors[f"ddim_image{suffix}"].clip(-1, 1).transpose(0, 2, 3, 1)
        made = theirs(pipe, golden, golden.steps, negative) * 2 - 1
        apart = max(apart, numpy.abs(made - expected).max())
    latents = encoded(pipe, bundle.name)
    if not latents <= TOLERANCE:
        raise Differs(f"latents of a picture differ from the recorded ones by {latents:.2e}")
    if not worst <= 1:
        raise Differs(f"a pixel differs from that of dlc by {worst} of 255")
    if not apart <= TOLERANCE:
        raise Differs(f"a picture differs from the recorded one by {apart:.2e}, more than {TOLERANCE:.2e}")
    return f"{type(pipe).__name__}, {2 * len(golden.prompts)} pictures within {worst} of 255, recorded ones within {apart:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dlc", metavar="DLC", help="the command")
    parser.add_argument("bundles", nargs="+", type=pathlib.Path, metavar="BUNDLE", help="a folder named as its fixture")
    arguments = parser.parse_args()
    for bundle in arguments.bundles:
        if not (bundle / "dlc.yaml").is_file() or not (FIXTURES / bundle.name / "golden.safetensors").is_file():
            parser.error(f"{bundle} is no bundle of a fixture in a folder of its name")
    good = True
    for bundle in arguments.bundles:
        try:
            mark, told = "ok     ", check(arguments.dlc, bundle)
        except Exception as error:  # a library fails with any exception
            mark, told, good = "FAILED ", " ".join(f"{type(error).__name__}: {error}".split())[:300], False
        dtype = recorded(bundle, "  dtype")
        print(f"{mark} optimum {VERSION}: {bundle.name}, {dtype}: {told}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
