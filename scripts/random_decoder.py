"""Checkpoints of a decoder with random weights, to time one of a size that nobody wants to download.

The pruned one is the whole one without its last layers, over the same files.
"""

import json
import pathlib
import shutil
from dataclasses import dataclass

import numpy
from safetensors.numpy import save_file

TINY = pathlib.Path(__file__).parent.parent / "fixtures" / "tiny-llama"


@dataclass
class Shape:
    hidden: int
    inner: int
    layers: int
    kept: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


# As Mistral 7B, and one for dry runs.
SEVEN = Shape(hidden=4096, inner=14336, layers=32, kept=24, heads=32, kv_heads=8, vocabulary=32000)
SMALL = Shape(hidden=128, inner=352, layers=4, kept=3, heads=4, kv_heads=2, vocabulary=2048)


def config(shape: Shape, layers: int) -> dict:
    own = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    return own | {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "float16",
    }


def layer(shape: Shape, at: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer, with their shapes."""
    keys = shape.kv_heads * shape.head_dim
    matrices = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    return {f"model.layers.{at}.{name}.weight": dims for name, dims in matrices.items()}


def filled(tensors: dict[str, tuple[int, ...]], noise: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """Matrices of noise, cut anew for each; norms of ones."""
    ones = lambda dims: numpy.ones(dims, numpy.float16)
    made = {}
    for at, (name, dims) in enumerate(tensors.items()):
        made[name] = ones(dims) if len(dims) == 1 else numpy.resize(numpy.roll(noise, 7919 * at), dims)
    return made


def write(whole: pathlib.Path, pruned: pathlib.Path, shape: Shape) -> dict:
    """Writes both checkpoints; returns a row for the report."""
    random = numpy.random.default_rng(0)
    noise = (random.standard_normal(1 << 20) * 0.02).astype(numpy.float16)
    ends = {
        "model.embed_tokens.weight": (shape.vocabulary, shape.hidden),
        "lm_head.weight": (shape.vocabulary, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    parts = [ends, *(layer(shape, at) for at in range(shape.layers))]
    for folder in (whole, pruned):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    bytes_written = 0
    for at, tensors in enumerate(parts):
        path = whole / f"part-{at}.safetensors"
        save_file(filled(tensors, numpy.roll(noise, at)), path)
        bytes_written += path.stat().st_size
    for folder, layers in ((whole, shape.layers), (pruned, shape.kept)):
        index = {name: f"part-{at}.safetensors" for at, part in enumerate(parts[: layers + 1]) for name in part}
        for name in set(index.values()):
            if folder == pruned:
                (pruned / name).symlink_to(whole / name)
        written = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(written, encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config(shape, layers)), encoding="utf-8")
        for side in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / side, folder / side)
    return {"gigabytes": round(bytes_written / 1e9, 2)}
