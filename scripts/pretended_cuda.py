"""ONNX Runtime's CUDA provider without a GPU: it places nodes, and computes nothing.

`start()` loads libraries with the names of CUDA's, whose functions do nothing and say that there is
one device (of compute capability 8.9). ONNX Runtime's own CUDA provider then takes the nodes that it
has kernels for, as on a machine with a GPU. `placed()` says where each node went. Nothing may be run.

Needs Linux, a C compiler and binutils.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import tempfile

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

CUDA = "CUDAExecutionProvider"

# What must do more than return 0. A device's properties: offsets as in CUDA 13's driver_types.h.
FUNCTIONS = {
    "cudaGetDeviceCount": "(int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "(int *n) { *n = 0; return 0; }",
    "cudaGetDeviceProperties": """(char *p, int device) {
  memset(p, 0, 1008); strcpy(p, "pretended");
  *(size_t *)(p + 288) = 1ull << 36; *(size_t *)(p + 296) = 49152; *(size_t *)(p + 672) = 101376;
  *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024; *(int *)(p + 360) = 8; *(int *)(p + 364) = 9;
  *(int *)(p + 384) = 80; return 0; }""",
    "cudaDeviceGetAttribute": "(int *v, int what, int device) { *v = what == 75 ? 8 : what == 76 ? 9 : 1024; return 0; }",
    "cudaMemGetInfo": "(size_t *free, size_t *all) { *free = *all = 1ull << 36; return 0; }",
    "cudaMalloc": "(void **p, size_t n) { *p = malloc(n); return 0; }",
    "cudaMallocHost": "(void **p, size_t n) { *p = malloc(n); return 0; }",
    "cudaHostAlloc": "(void **p, size_t n, int flags) { *p = malloc(n); return 0; }",
    "cudaFree": "(void *p) { free(p); return 0; }",
    "cudaFreeHost": "(void *p) { free(p); return 0; }",
    "cudaMemcpy": "(void *to, const void *from, size_t n, int kind) { memcpy(to, from, n); return 0; }",
    "cudaMemcpyAsync": "(void *to, const void *from, size_t n, int kind, void *stream) { memcpy(to, from, n); return 0; }",
    "cudaStreamCreate": "(void **stream) { *stream = malloc(64); return 0; }",
    "cudaStreamCreateWithFlags": "(void **stream, int flags) { *stream = malloc(64); return 0; }",
    "cudaRuntimeGetVersion": "(int *version) { *version = 13000; return 0; }",
    "cudaDriverGetVersion": "(int *version) { *version = 13000; return 0; }",
}
# Functions that give an object, and functions that give a number or a text in place of a state.
MAKES_OBJECT = re.compile(r"(Create|CreateDesc\w*)(_v2|WithFlags)?$")
WORDS = {"cudaGetErrorString", "cudaGetErrorName", "cublasGetStatusName", "cublasGetStatusString", "cudnnGetErrorString"}
VERSIONS = {"cudnnGetVersion": 91000, "cublasLtGetVersion": 130000}


def source(function: str) -> str:
    if function in FUNCTIONS:
        return f"int {function}{FUNCTIONS[function]}"
    if function in WORDS:
        return f'const char *{function}(int state) {{ return "pretended"; }}'
    if function in VERSIONS:
        return f"size_t {function}(void) {{ return {VERSIONS[function]}; }}"
    if MAKES_OBJECT.search(function):
        return f"int {function}(void **object) {{ *object = calloc(1, 4096); return 0; }}"
    return f"int {function}(void) {{ return 0; }}"


def wanted(provider: pathlib.Path) -> dict[str, set[str]]:
    """The functions that the provider takes from each library of CUDA."""
    libraries: dict[str, set[str]] = {"libcuda.so.1": set(), "libcurand.so.10": {"curandCreateGenerator"}}
    listing = subprocess.check_output(["nm", "-D", "--undefined-only", str(provider)], text=True)
    for symbol in (line.split()[-1] for line in listing.splitlines()):
        name, _, library = symbol.replace("@@", "@").partition("@")
        if re.match(r"lib(cublas|cublasLt|cudart)\.so", library):
            libraries.setdefault(library, set()).add(name)
        elif re.match(r"cu[A-Z]", name):
            libraries["libcuda.so.1"].add(name)
    # cuDNN is opened while the provider starts, function by function.
    names = re.findall(rb"\bcudnn[A-Z]\w+", provider.read_bytes())
    libraries["libcudnn.so.9"] = {name.decode() for name in names}
    return libraries


def start() -> None:
    """Loads the libraries. ONNX Runtime finds them by their names when it loads its provider."""
    provider = pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
    with tempfile.TemporaryDirectory() as folder:
        for library, functions in wanted(provider).items():
            code, versions, made = (pathlib.Path(folder, library + end) for end in (".c", ".map", ""))
            code.write_text("#include <stdlib.h>\n#include <string.h>\n" + "\n".join(map(source, sorted(functions))))
            versions.write_text(f"{library} {{ global: *; }};\n")
            command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{library}"]
            subprocess.check_call([*command, f"-Wl,--version-script={versions}", "-o", str(made), str(code)])
            ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)


def placed(model: bytes | str, optimize: bool = False) -> dict[str, str]:
    """The provider of each node of a model that stays, by the node's name. Raises what ONNX Runtime raises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=[CUDA, "CPUExecutionProvider"])
    if CUDA not in session.get_providers():
        raise RuntimeError("ONNX Runtime did not take the pretended device")
    parts = session.get_provider_graph_assignment_info()
    return {node.name: part.ep_name for part in parts for node in part.get_nodes()}
