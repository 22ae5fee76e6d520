#!/usr/bin/env python3
"""Write which nodes ONNX Runtime's CUDA provider takes: exporters/src/onnx/operators.txt.

    "$(scripts/pyenv.sh cuda)" scripts/cuda_kernels.py [--check]

For each operator that dlc writes, each of its versions that opsets 17 to 23 have, and all element
types that its schema allows, a model of one node is loaded by ONNX Runtime with its CUDA provider on
a pretended device (see pretended_cuda.py): no GPU is needed. The file has ONNX Runtime's version.

--check compares with the file that is there, and writes nothing. Exit status: 0 equal or written,
1 different.
"""

import itertools
import pathlib
import sys

import pretended_cuda

import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

OUT = pathlib.Path(__file__).parent.parent / "exporters/src/onnx/operators.txt"
FIRST, LAST = 17, 23
MICROSOFT = "com.microsoft"

# Element types of dlc: short name, ONNX's name, ONNX's number.
TYPES = {
    "bool": ("tensor(bool)", TensorProto.BOOL),
    "u4": ("tensor(uint4)", TensorProto.UINT4),
    "u8": ("tensor(uint8)", TensorProto.UINT8),
    "i32": ("tensor(int32)", TensorProto.INT32),
    "i64": ("tensor(int64)", TensorProto.INT64),
    "f16": ("tensor(float16)", TensorProto.FLOAT16),
    "bf16": ("tensor(bfloat16)", TensorProto.BFLOAT16),
    "f32": ("tensor(float)", TensorProto.FLOAT),
}
# What ONNX Runtime says where no provider has a kernel, or no such node is possible.
NO_KERNEL = ["NOT_IMPLEMENTED", "Provider type for", "bound to different types"]
SHORT = {long: short for short, (long, _) in TYPES.items()}

# What dlc writes: how many inputs at most (0 for one that is left out), outputs, attributes.
OPERATORS = {
    "Add": (2, 1, {}),
    "And": (2, 1, {}),
    "Attention": (6, 3, {"q_num_heads": 2, "kv_num_heads": 2}),
    "Cast": (1, 1, {}),
    "Clip": (3, 1, {}),
    "Concat": (2, 1, {"axis": 0}),
    "Conv": (3, 1, {}),
    "Cos": (1, 1, {}),
    "CumSum": (2, 1, {}),
    "DequantizeLinear": (3, 1, {"axis": 0, "block_size": 32}),
    "Div": (2, 1, {}),
    "Equal": (2, 1, {}),
    "Erf": (1, 1, {}),
    "Expand": (2, 1, {}),
    "Floor": (1, 1, {}),
    "Gather": (2, 1, {}),
    "GatherElements": (2, 1, {}),
    "GatherND": (2, 1, {"batch_dims": 1}),
    "Gelu": (1, 1, {}),
    "Gemm": (3, 1, {"transB": 1}),
    "Greater": (2, 1, {}),
    "GreaterOrEqual": (2, 1, {}),
    "Identity": (1, 1, {}),
    "InstanceNormalization": (3, 1, {}),
    "LayerNormalization": (3, 1, {}),
    "Less": (2, 1, {}),
    "LessOrEqual": (2, 1, {}),
    "MatMul": (2, 1, {}),
    "Max": (2, 1, {}),
    "Min": (2, 1, {}),
    "Mul": (2, 1, {}),
    "Neg": (1, 1, {}),
    "Not": (1, 1, {}),
    "Pad": (3, 1, {}),
    "Pow": (2, 1, {}),
    "RMSNormalization": (2, 1, {}),
    "Range": (3, 1, {}),
    "Reciprocal": (1, 1, {}),
    "ReduceMax": (2, 1, {}),
    "ReduceMean": (2, 1, {}),
    "ReduceSum": (2, 1, {}),
    "Relu": (1, 1, {}),
    "Reshape": (2, 1, {}),
    "Resize": ((1, 0, 1), 1, {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}),
    "RotaryEmbedding": (3, 1, {"num_heads": 2}),
    "ScatterElements": (3, 1, {}),
    "Shape": (1, 1, {}),
    "Sigmoid": (1, 1, {}),
    "Sin": (1, 1, {}),
    "Slice": (4, 1, {}),
    "Softmax": (1, 1, {}),
    "Split": (2, 2, {}),
    "Sqrt": (1, 1, {}),
    "Squeeze": (2, 1, {}),
    "Sub": (2, 1, {}),
    "Tanh": (1, 1, {}),
    "TopK": (2, 2, {}),
    "Transpose": (1, 1, {}),
    "Unsqueeze": (2, 1, {}),
    "Where": (3, 1, {}),
    "com.microsoft.FusedMatMul": (2, 1, {"transB": 1}),
    "com.microsoft.GatherBlockQuantized": (4, 1, {"gather_axis": 0, "quantize_axis": 1, "bits": 8, "block_size": 32}),
    "com.microsoft.GroupQueryAttention": (9, 3, {"num_heads": 2, "kv_num_heads": 2, "do_rotary": 1}),
    "com.microsoft.MatMulNBits": (
        (1, 1, 1, 1, 0, 1), 1, {"K": 64, "N": 64, "bits": 8, "block_size": 32, "accuracy_level": 4},
    ),
    "com.microsoft.MoE": ((1, 1, 1, 0, 1), 1, {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1}),
    "com.microsoft.MultiHeadAttention": ((1, 1, 1, 0, 1, 1), 1, {"num_heads": 2}),
    "com.microsoft.QMoE": (
        (1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1), 1,
        {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "expert_weight_bits": 4, "block_size": 32},
    ),
    "com.microsoft.SkipLayerNormalization": (4, (1, 0, 0, 1), {}),
    "com.microsoft.SkipSimplifiedLayerNormalization": (3, (1, 0, 0, 1), {}),
}


def mask(given: int | tuple[int, ...]) -> list[int]:
    return [1] * given if isinstance(given, int) else list(given)


def parameters(formal, given) -> list[str]:
    """The type of each input or output that dlc gives; the last of a list without end stands for all."""
    names = [formal[min(at, len(formal) - 1)].typeStr for at in range(len(given))]
    return [name if used else "" for name, used in zip(names, given)]


def has_no_end(formal) -> bool:
    return formal[-1].option == state.schemadef.OpSchema.FormalParameterOption.Variadic


def probe(domain: str, name: str, opset: int, inputs, outputs, attributes, binding) -> bool:
    """Whether the CUDA provider takes the node with these types."""
    def number(parameter: str) -> int:
        return TYPES[binding.get(parameter) or SHORT[parameter]][1]

    def values(kind, parameters):
        # One operator wants to know the shape of its bias.
        shapes = {"in5": [64]} if name == "MatMulNBits" else {}
        named = ((f"{kind}{at}", number(p)) for at, p in enumerate(parameters) if p)
        return [helper.make_tensor_value_info(value, kind, shapes.get(value)) for value, kind in named]

    if name == "Cast":
        attributes = {"to": number(outputs[0])}
    given, made = values("in", inputs), values("out", outputs)
    names = [f"in{at}" if p else "" for at, p in enumerate(inputs)]
    results = [f"out{at}" if p else "" for at, p in enumerate(outputs)]
    node = helper.make_node(name, names, results, name="probe", domain=domain, **attributes)
    graph = helper.make_graph([node], "probe", given, made)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        return pretended_cuda.placed(model.SerializeToString()).get("probe") == pretended_cuda.CUDA
    except Exception as error:  # no kernel on any provider
        if not any(reason in str(error) for reason in NO_KERNEL):
            print(f"{name} {opset} {binding}: {error}", file=sys.stderr)
        return False


def rows(names: list[str], taken: list[tuple[str, ...]]) -> list[str]:
    """The combinations as few lines of lists of types."""
    if not names:
        return [""] if taken else []
    suffixes: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in taken:
        suffixes.setdefault(first, []).append(tuple(rest))
    groups: dict[tuple, list[str]] = {}
    for first, rest in suffixes.items():
        groups.setdefault(tuple(rest), []).append(first)
    lines = []
    for rest, firsts in groups.items():
        for tail in rows(names[1:], list(rest)):
            lines.append(f"{names[0]}={','.join(firsts)} {tail}".strip())
    return lines


def versions(schemas) -> list:
    """Those that a model of opset FIRST to LAST can mean, the oldest first."""
    ordered = sorted(schemas, key=lambda schema: schema.since_version)
    current = max((s.since_version for s in ordered if s.since_version <= FIRST), default=0)
    return [s for s in ordered if current <= s.since_version <= LAST]


def operator(full_name: str, schema, given, made, attributes) -> list[str]:
    domain, _, name = full_name.rpartition(".")
    inputs, outputs = parameters(schema.inputs, given), parameters(schema.outputs, made)
    if name in ("ReduceMax", "ReduceMean") and schema.since_version < 18:
        inputs = inputs[:1]
    if name == "DequantizeLinear":
        outputs = inputs[1:2]  # without `output_dtype`, the scale's type
    allowed = {c.type_param_str: [SHORT[t] for t in SHORT if t in c.allowed_type_strs] for c in schema.type_constraints}
    names = [p for p in dict.fromkeys(inputs + outputs) if p in allowed]
    attributes = {name: value for name, value in attributes.items() if name in schema.attributes}
    opset = max(schema.since_version, FIRST) if not domain else FIRST
    taken = [
        types
        for types in itertools.product(*(allowed[p] for p in names))
        if probe(domain, name, opset, inputs, outputs, attributes, dict(zip(names, types)))
    ]
    def spelled(kinds, formal):
        return ", ".join(SHORT.get(p, p) or "-" for p in kinds) + ("..." if has_no_end(formal) else "")

    form = f"({spelled(inputs, schema.inputs)}) -> ({spelled(outputs, schema.outputs)})"
    lines = [f"operator {full_name} {schema.since_version} {form}"]
    if schema.attributes:
        lines.append("  attributes " + " ".join(sorted(schema.attributes)))
    lines += ["  types " + " ".join(f"{p}={','.join(allowed[p])}" for p in names)]
    lines += [f"  cuda {row}" for row in rows(names, taken)]
    return lines


def table() -> str:
    pretended_cuda.start()
    schemas: dict[str, list] = {}
    for schema in state.get_all_operator_schema():
        name = f"{schema.domain}.{schema.name}" if schema.domain else schema.name
        schemas.setdefault(name, []).append(schema)
    lines = [
        f"# The operators that dlc writes: their schemas, and the kernels of the CUDA provider of ONNX Runtime {onnxruntime.__version__}.",
        "# Made by scripts/cuda_kernels.py. Of each operator: the opset that it has this form since, what stands",
        "# for the types of inputs and outputs, the names of attributes, the types that the schema allows, and",
        "# line by line those that the provider has a kernel for.",
    ]
    for name, (given, made, attributes) in OPERATORS.items():
        for schema in versions(schemas[name]):
            lines += operator(name, schema, mask(given), mask(made), attributes)
    return "\n".join(lines) + "\n"


def main() -> int:
    made = table()
    if sys.argv[1:] == ["--check"]:
        same = OUT.read_text() == made
        print("the same" if same else f"{OUT} is not what ONNX Runtime {onnxruntime.__version__} says")
        return 0 if same else 1
    OUT.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
