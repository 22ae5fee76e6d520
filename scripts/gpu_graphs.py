"""Times a single-token step of a decoder on CUDA, with CUDA graphs and without."""

import os
import pathlib
import statistics
import time

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy
import onnxruntime

# Tokens in the caches, places in them, runs.
PAST, PLACES, WARM, RUNS = 128, 256, 3, 30
TYPES = {"tensor(int64)": numpy.int64, "tensor(float16)": numpy.float16, "tensor(float)": numpy.float32}
SIZES = {
    "batch_size": 1,
    "sequence_length": 1,
    "past_sequence_length": PLACES,
    "total_sequence_length": PAST + 1,
}


def feed(port: onnxruntime.NodeArg) -> numpy.ndarray:
    shape = [SIZES[dim] if isinstance(dim, str) else dim for dim in port.shape]
    kind = TYPES[port.type]
    if port.name == "attention_mask":
        return numpy.ones(shape, kind)
    if port.name == "position_ids":
        return numpy.full(shape, PAST, kind)
    return numpy.zeros(shape, kind)


def milliseconds(path: pathlib.Path, graphs: bool) -> float:
    """The median of a step, caches kept in place on the device."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1" if graphs else "0"})
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    device = lambda array: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
    values = {port.name: device(feed(port)) for port in session.get_inputs()}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    vocabulary = session.get_outputs()[0].shape[-1]
    logits = numpy.zeros([1, 1, vocabulary], TYPES[session.get_outputs()[0].type])
    for port in session.get_outputs():
        past = values.get(port.name.replace("present.", "past_key_values."))
        binding.bind_ortvalue_output(port.name, past or device(logits))
    times = []
    for _ in range(WARM + RUNS):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[WARM:])


def step_times(path: pathlib.Path) -> dict:
    """A row for the report."""
    off = milliseconds(path, graphs=False)
    try:
        on = milliseconds(path, graphs=True)
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base
        return {"off_ms": round(off, 3), "state": "refused", "note": " ".join(str(error).split())[:300]}
    return {"off_ms": round(off, 3), "on_ms": round(on, 3)}
