"""Builds an engine of TensorRT for RTX for the GPU that is here, runs it, and compares with ONNX Runtime on the CPU."""

import ctypes
import os
import pathlib

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy
import onnx
import onnxruntime
import tensorrt_rtx as tensorrt

from check_tensorrt import RANGES, Errors, Failed, plan

TO_DEVICE, TO_HOST = 1, 2


class Cuda:
    """What is needed of CUDA's runtime."""

    def __init__(self) -> None:
        names = ["libcudart.so.13", "libcudart.so.12", "libcudart.so"]
        self.library = next(filter(None, map(self.opened, names)), None)
        if self.library is None:
            raise Failed(f"none of {', '.join(names)} is found")

    @staticmethod
    def opened(name: str) -> ctypes.CDLL | None:
        try:
            return ctypes.CDLL(name)
        except OSError:
            return None

    def call(self, function: str, *arguments: object) -> None:
        state = getattr(self.library, function)(*arguments)
        if state:
            raise Failed(f"{function} says {state}")

    def room(self, size: int) -> ctypes.c_void_p:
        place = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(max(size, 16)))
        return place

    def copy(self, to: object, source: object, size: int, way: int) -> None:
        if size:
            self.call("cudaMemcpy", to, source, ctypes.c_size_t(size), way)


def feeds(path: pathlib.Path) -> dict[str, numpy.ndarray]:
    """Inputs of the usual sizes, the same each time."""
    random = numpy.random.default_rng(0)
    made = {}
    for port in onnx.load(path, load_external_data=False).graph.input:
        tensor = port.type.tensor_type
        shape = [RANGES[d.dim_param][1] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if port.name.endswith("mask"):
            made[port.name] = numpy.ones(shape, kind)
        elif port.name == "position_ids":
            past = RANGES["past_sequence_length"][1]
            made[port.name] = numpy.broadcast_to(numpy.arange(past, past + shape[1]), shape).astype(kind)
        elif kind == numpy.int64:
            made[port.name] = random.integers(0, 2 if "type" in port.name else 50, shape)
        else:
            made[port.name] = random.standard_normal(shape).astype(kind)
    return made


def engine(path: pathlib.Path, errors: Errors) -> tensorrt.ICudaEngine:
    built, _ = plan(path, errors, None)
    made = tensorrt.Runtime(errors).deserialize_cuda_engine(built)
    if not made:
        raise Failed("; ".join(errors.lines))
    return made


def outputs(path: pathlib.Path, given: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    """What the engine computes. Raises Failed."""
    errors, cuda = Errors(), Cuda()
    made = engine(path, errors)
    context = made.create_execution_context()
    stream = ctypes.c_void_p()
    cuda.call("cudaStreamCreate", ctypes.byref(stream))
    for name, array in given.items():
        context.set_input_shape(name, array.shape)
    results, places = {}, {}
    for at in range(made.num_io_tensors):
        name = made.get_tensor_name(at)
        array = given.get(name)
        if array is None:
            kind = tensorrt.nptype(made.get_tensor_dtype(name))
            array = results[name] = numpy.zeros(tuple(context.get_tensor_shape(name)), kind)
        places[name] = cuda.room(array.nbytes)
        cuda.copy(places[name], array.ctypes.data_as(ctypes.c_void_p), array.nbytes, TO_DEVICE)
        context.set_tensor_address(name, places[name].value)
    if not context.execute_async_v3(stream.value):
        raise Failed("; ".join(errors.lines))
    cuda.call("cudaStreamSynchronize", stream)
    for name, array in results.items():
        cuda.copy(array.ctypes.data_as(ctypes.c_void_p), places[name], array.nbytes, TO_HOST)
    for place in places.values():
        cuda.call("cudaFree", place)
    return results


def error(path: pathlib.Path) -> float:
    """The largest difference of any output, as a share of the largest number where that is above 1."""
    given = {name: numpy.ascontiguousarray(array) for name, array in feeds(path).items()}
    ours = outputs(path, given)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    worst = 0.0
    for name, expected in zip(names, session.run(names, given), strict=True):
        expected = expected.astype(numpy.float32)
        difference = numpy.abs(ours[name].astype(numpy.float32) - expected).max(initial=0.0)
        worst = max(worst, float(difference / max(1.0, numpy.abs(expected).max(initial=0.0))))
    return worst
