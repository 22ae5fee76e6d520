#!/usr/bin/env python3
"""Time one mixture of experts on ONNX Runtime's CPU, in the ways that a graph can compute it.

    "$(scripts/pyenv.sh)" scripts/bench_experts.py [--threads 2] [--seconds 2]

`moe` is the operator of profile `ort`, `dense` what the other profiles write (`exporters/src/onnx/lower/experts.rs`). `gather` copies the
matrices of each token's experts, `loop` goes through the experts with `Loop` and copies those that some token goes through. All answers
are compared before anything is timed. Prints milliseconds of a run, the fastest of those that fit into the time, in turns.
"""

import argparse
import itertools
import os
import time

# The library reads it when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Experts, of which a token takes so many, width, width inside: Mixtral's and Qwen3-30B-A3B's proportions, smaller.
SHAPES = {"8 experts, 2 taken": (8, 2, 1024, 3584), "128 experts, 8 taken": (128, 8, 1024, 384)}
TOKENS = [1, 4, 8, 64]


class Graph:
    def __init__(self):
        self.nodes, self.initializers, self.count = [], {}, 0

    def constant(self, value, dtype=np.int64):
        array = np.array(value, dtype)
        key = f"c{len(self.initializers)}"
        self.initializers[key] = array
        return key

    def op(self, kind, *inputs, outputs=1, domain="", **attributes):
        names = [f"v{self.count + i}" for i in range(outputs)]
        self.count += outputs
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names


def chosen(g, logits, top):
    probabilities = g.op("Softmax", logits, axis=-1)
    shares, which = g.op("TopK", probabilities, g.constant([top]), outputs=2, axis=-1)
    shares = g.op("Div", shares, g.op("ReduceSum", shares, g.constant([-1]), keepdims=1))
    return probabilities, shares, which


def scattered(g, logits, top):
    probabilities, shares, which = chosen(g, logits, top)
    return g.op("ScatterElements", g.op("Sub", probabilities, probabilities), which, shares, axis=1)


def silu(g, x):
    return g.op("Mul", x, g.op("Sigmoid", x))


def moe(g, w, top):
    gate, up, down = w
    count, inner, width = gate.shape
    g.initializers["into"] = np.stack([gate, up], 2).reshape(count, 2 * inner, width)
    g.initializers["back"] = down
    return g.op("MoE", "x", "logits", "into", "", "back", domain="com.microsoft", k=top, normalize_routing_weights=1,
                activation_type="swiglu", activation_alpha=1.0, activation_beta=0.0, swiglu_fusion=1)


def dense(g, w, top):
    gate, up, down = w
    count, inner, width = gate.shape
    g.initializers["gates"], g.initializers["ups"] = gate.reshape(-1, width), up.reshape(-1, width)
    g.initializers["downs"] = np.ascontiguousarray(down.transpose(1, 0, 2)).reshape(width, -1)
    shares = g.op("Reshape", scattered(g, "logits", top), g.constant([-1, count, 1]))
    gated = g.op("Mul", silu(g, g.op("Gemm", "x", "gates", transB=1)), g.op("Gemm", "x", "ups", transB=1))
    gated = g.op("Mul", g.op("Reshape", gated, g.constant([-1, count, inner])), shares)
    return g.op("Gemm", g.op("Reshape", gated, g.constant([-1, count * inner])), "downs", transB=1)


def gather(g, w, top):
    g.initializers["gates"], g.initializers["ups"], g.initializers["downs"] = w
    _, shares, which = chosen(g, "logits", top)
    column = g.op("Unsqueeze", "x", g.constant([1, 3]))  # [tokens, 1, width, 1]
    product = lambda name, x: g.op("MatMul", g.op("Gather", name, which, axis=0), x)
    gated = g.op("Mul", silu(g, product("gates", column)), product("ups", column))
    made = g.op("Squeeze", product("downs", gated), g.constant([3]))  # [tokens, top, width]
    return g.op("ReduceSum", g.op("Mul", made, g.op("Unsqueeze", shares, g.constant([2]))), g.constant([1]), keepdims=0)


def loop(g, w, top):
    g.initializers["gates"], g.initializers["ups"], g.initializers["downs"] = w
    shares = g.op("Transpose", scattered(g, "logits", top), perm=[1, 0])
    body, some = Graph(), Graph()
    body.count, some.count = 10_000, 20_000
    row = body.op("Gather", shares, "e", axis=0)
    one = body.constant([1])
    rows = body.op("Squeeze", body.op("NonZero", row), body.constant([0]))
    any_row = body.op("Greater", body.op("Size", rows), body.constant(0))
    x = some.op("Gather", "x", rows, axis=0)
    product = lambda name, x: some.op("Gemm", x, some.op("Gather", name, "e", axis=0), transB=1)
    gated = some.op("Mul", silu(some, product("gates", x)), product("ups", x))
    share = some.op("Unsqueeze", some.op("Gather", row, rows, axis=0), one)
    made = some.op("Mul", product("downs", gated), share)
    added = some.op("ScatterND", "sum", some.op("Unsqueeze", rows, one), made, reduction="add")
    kept = helper.make_graph([helper.make_node("Identity", ["sum"], ["kept"])], "none", [], [helper.make_empty_tensor_value_info("kept")])
    some = helper.make_graph(some.nodes, "some", [], [helper.make_empty_tensor_value_info(added)])
    after = body.op("If", any_row, then_branch=some, else_branch=kept)
    go_on = body.op("Identity", "go")
    constants = [numpy_helper.from_array(array, f"b.{name}") for name, array in body.initializers.items()]
    rename = {name: f"b.{name}" for name in body.initializers}
    def renamed(graph_nodes):
        for node in graph_nodes:
            node.input[:] = [rename.get(name, name) for name in node.input]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    renamed(attribute.g.node)
    renamed(body.nodes)
    typed = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    inputs = [typed("e", TensorProto.INT64, []), typed("go", TensorProto.BOOL, []), typed("sum", TensorProto.FLOAT, None)]
    outputs = [typed(go_on, TensorProto.BOOL, []), typed(after, TensorProto.FLOAT, None)]
    body = helper.make_graph(body.nodes, "body", inputs, outputs, constants)
    count = g.constant(w[0].shape[0])
    return g.op("Loop", count, "", g.op("Sub", "x", "x"), body=body)


WAYS = {"moe": moe, "dense": dense, "gather": gather, "loop": loop}


def session(way, w, top, threads):
    g = Graph()
    out = way(g, w, top)
    count, _, width = w[0].shape
    value = lambda name, n: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", n])
    initializers = [numpy_helper.from_array(array, name) for name, array in g.initializers.items()]
    graph = helper.make_graph(g.nodes, "mixture", [value("x", width), value("logits", count)], [value(out, width)], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way and number of tokens")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for title, (count, top, width, inner) in SHAPES.items():
        shapes = [(count, inner, width), (count, inner, width), (count, width, inner)]
        w = [rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[2])) for shape in shapes]
        sessions = {name: session(way, w, top, args.threads) for name, way in WAYS.items()}
        print(f"\n{title}, {width} wide, {inner} inside, {args.threads} threads: milliseconds\n\n| tokens | {' | '.join(WAYS)} |")
        print("|---" * (len(WAYS) + 1) + "|")
        for tokens in TOKENS:
            feeds = [{"x": rng.standard_normal((tokens, width), np.float32), "logits": rng.standard_normal((tokens, count), np.float32)}
                     for _ in range(16)]
            # Copies of 64 tokens' matrices don't fit into memory.
            ways = [name for name in WAYS if name != "gather" or tokens * top <= 64]
            wanted = sessions["moe"].run(None, feeds[0])[0]
            for name in ways:
                error = np.abs(sessions[name].run(None, feeds[0])[0] - wanted).max()
                assert error < 1e-4, (title, name, error)
            best, end = dict.fromkeys(ways, float("inf")), time.perf_counter() + args.seconds * len(ways)
            for feed in itertools.cycle(feeds):
                for name in ways:
                    start = time.perf_counter()
                    sessions[name].run(None, feed)
                    best[name] = min(best[name], time.perf_counter() - start)
                if time.perf_counter() > end:
                    break
            print(f"| {tokens} | " + " | ".join(f"{1000 * best[name]:.2f}" if name in best else "-" for name in WAYS) + " |")


if __name__ == "__main__":
    main()
