#!/usr/bin/env python3
"""Write the weights of a checkpoint as a GGUF file in f16, with everything else from the GGUF file that it was made of.

    PYTHONPATH=LLAMA_CPP/gguf-py "$(scripts/pyenv.sh)" scripts/write_f16_gguf.py ORIGINAL.gguf CHECKPOINT OUT.gguf

For `dlc convert ORIGINAL.gguf CHECKPOINT --off-grid`: llama.cpp then reads the very weights that dlc reads, without
PyTorch, which llama.cpp's own converter needs. Architectures llama and qwen2. Vectors are in f32, as llama.cpp has them.

Exit status: 0 done, 1 a tensor is missing or of another shape, 2 bad usage.
"""

import pathlib
import sys

import gguf
import numpy
import safetensors.numpy


def paired(rows, heads):
    """The rows of q or k as llama.cpp rotates them: the two halves of each head in turn."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def architecture_id(name):
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def field(reader, name):
    return reader.fields[name].contents()


def checkpoint_tensors(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(safetensors.numpy.load_file(file))
    return tensors


def main(original, checkpoint, out):
    reader = gguf.GGUFReader(original)
    architecture = field(reader, "general.architecture")
    layers = field(reader, f"{architecture}.block_count")
    heads = field(reader, f"{architecture}.attention.head_count")
    kv_heads = field(reader, f"{architecture}.attention.head_count_kv")
    names = gguf.get_tensor_name_map(architecture_id(architecture), layers)
    writer = gguf.GGUFWriter(out, architecture)
    for key, value in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = value.types[0]
        writer.add_key_value(key, value.contents(), kind, value.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    written = set()
    for name, data in checkpoint_tensors(checkpoint).items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            sys.exit(f"{checkpoint}: {architecture} has no tensor for {name}")
        if shapes.get(theirs, data.shape) != data.shape:
            sys.exit(f"{checkpoint}: {name} is {list(data.shape)}, and {list(shapes[theirs])} in {original}")
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            data = paired(data, heads if ".q_proj." in name else kv_heads)
        kind = numpy.float16 if data.ndim > 1 else numpy.float32
        writer.add_tensor(theirs, numpy.ascontiguousarray(data.astype(kind)))
        written.add(theirs)
    # What is in neither the checkpoint's names nor its files: a head of its own, where the embedding is it.
    missing = shapes.keys() - written - {"output.weight", "rope_freqs.weight"}
    if missing:
        sys.exit(f"{checkpoint}: no tensor for {', '.join(sorted(missing))}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3])
