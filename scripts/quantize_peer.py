#!/usr/bin/env python3
"""Quantise the f32 decoder of a bundle with ONNX Runtime's own quantisers, and say what that lost.

    "$(scripts/pyenv.sh)" scripts/quantize_peer.py BUNDLE OUT [--ways rtn k_quant hqq] [--bits 4] [--block 32] [--text FILE]

BUNDLE is a bundle of profile `ort` in f32. Its `FusedMatMul` become `MatMul` of transposed matrices, since the quantisers of
`onnxruntime.quantization.matmul_nbits_quantizer` find no others; embeddings become `GatherBlockQuantized`, which has no
f32 table left where the head reads the same one. OUT/WAY is the bundle with that model. `hqq` needs PyTorch.

Prints a line of JSON for each: bytes of the model and its weights, and the figures of `dlc compare` against BUNDLE over the
same text. Exit status: 0 done.
"""

import argparse
import json
import os
import pathlib
import shutil

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
from check_compare import BUILT_IN_TEXT, figures, open_session, read_pieces
from onnx import numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as quantizer

AXES = (("MatMul", 0), ("Gather", 1))


def with_products(path):
    """The model with its matrices as `MatMul` reads them; a table that tokens are looked up in stays as it is."""
    model = onnx.load(path)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    transposed = {}
    for node in model.graph.node:
        if node.op_type != "FusedMatMul":
            continue
        matrix = node.input[1]
        if matrix not in transposed:
            transposed[matrix] = f"{matrix}.transposed"
            array = np.ascontiguousarray(numpy_helper.to_array(initializers[matrix]).T)
            model.graph.initializer.append(numpy_helper.from_array(array, transposed[matrix]))
        node.op_type, node.domain = "MatMul", ""
        node.input[1] = transposed[matrix]
        del node.attribute[:]
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def algorithm(way, bits, block):
    kinds = ("MatMul", "Gather")
    if way == "rtn":
        return None
    if way == "k_quant":
        return quantizer.KQuantWeightOnlyQuantConfig(op_types_to_quantize=kinds)
    return quantizer.HQQWeightOnlyQuantConfig(block_size=block, bits=bits, op_types_to_quantize=("MatMul",), quant_axes=AXES)


def quantize(way, model, folder, bits, block):
    found = quantizer.MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block,
        is_symmetric=False,
        accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=AXES,
        algo_config=algorithm(way, bits, block),
    )
    found.process()
    found.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--ways", nargs="+", default=["rtn"], choices=["rtn", "k_quant", "hqq"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--text", type=pathlib.Path, default=BUILT_IN_TEXT)
    args = parser.parse_args()
    texts = read_pieces(args.bundle, args.text)
    whole = open_session(args.bundle / "model.onnx")
    for way in args.ways:
        folder = args.out / way
        folder.mkdir(parents=True)
        for file in args.bundle.iterdir():
            if file.suffix == ".json":
                shutil.copy(file, folder)
        quantize(way, with_products(args.bundle / "model.onnx"), folder, args.bits, args.block)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".json")
        found = {name: float(value) for name, value in figures(whole, open_session(folder / "model.onnx"), texts).items()}
        print(json.dumps({"way": way, "bits": args.bits, "block": args.block, "bytes": size, **found}), flush=True)


if __name__ == "__main__":
    main()
