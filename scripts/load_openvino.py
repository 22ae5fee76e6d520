#!/usr/bin/env python3
"""Decode greedily with OpenVINO: python load_openvino.py BUNDLE PROMPT TOKENS"""

import sys

import numpy
import openvino
from tokenizers import Tokenizer

bundle, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = Tokenizer.from_file(f"{bundle}/tokenizer.json")
model = openvino.compile_model(f"{bundle}/model.onnx", "CPU")
request = model.create_infer_request()

tokens = tokenizer.encode(prompt).ids
caches = {}
for port in model.inputs:
    if port.get_any_name().startswith("past_key_values."):
        heads, width = (port.partial_shape[axis].get_length() for axis in (1, 3))
        caches[port.get_any_name()] = numpy.zeros((1, heads, 0, width), port.element_type.to_dtype())

done, step = 0, tokens
for _ in range(count):
    positions = numpy.arange(done, done + len(step))[None]
    mask = numpy.ones((1, done + len(step)), numpy.int64)
    outputs = request.infer({"input_ids": [step], "attention_mask": mask, "position_ids": positions, **caches})
    caches = {name: outputs[name.replace("past_key_values", "present")].copy() for name in caches}
    done, step = done + len(step), [int(outputs["logits"][0, -1].argmax())]
    tokens += step
print(tokenizer.decode(tokens))
