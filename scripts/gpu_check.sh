#!/usr/bin/env bash
# Does in under 20 minutes, on a machine with an NVIDIA GPU, what can't be checked without one.
#
#   scripts/gpu_check.sh [--provider cuda|cpu] [--dlc FILE] [--models DIR] [--out DIR] [--only STEP]... [--budget SECONDS]
#   scripts/gpu_check.sh --help
#
# It downloads and builds nothing: a release binary, the wheels of scripts/requirements-cuda.txt with CUDA's own libraries and of
# tensorrt-rtx, and the checkpoints are there before. What isn't there is reported as absent, never as passed.
#
#   --provider   where to compute (default: cuda). cpu is a dry run with small models
#   --dlc        the release binary (default: target/release/dlc)
#   --models     a folder that may hold qwen2.5-coder-1.5b/ and fashion-sd/ (default: target/models)
#   --out        where results and bundles go (default: target/gpu-check). Bundles are removed after use; 60 GB are needed at most
#   --only       one step: machine, accuracy, sampling, decoding, tensorrt, seven; may be given several times
#   --budget     seconds for each step in place of its own
#
# Steps run one by one in processes of their own. One that fails, or takes longer than its budget, leaves the rows that it has and
# doesn't stop the others. OUT/gpu_check.json has every row; OUT/gpu_check.md, also printed, is the table for docs/measurements.md.
#
# Environment:
#   PYTHON           an interpreter with the wheels (default: that of scripts/pyenv.sh cuda if it was made, else python3)
#   ORT_DYLIB_PATH   ONNX Runtime's library for dlc (default: as `dlc doctor` finds it, PYTHON's wheel first)
#
# Exit status: 0 nothing failed, 1 a row failed or ran out of time, 2 bad usage.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
esac
made=${DLC_PYENV:-target/pyenv}-cuda/bin/python
python=${PYTHON:-$([[ -x $made ]] && echo "$made" || echo python3)}

# dlc loads the same library as the Python steps, and CUDA's libraries lie in wheels of their own.
wheels=$("$python" -c 'import pathlib, onnxruntime; print(pathlib.Path(onnxruntime.__file__).parent.parent)' 2>/dev/null) || wheels=
if [[ -n $wheels ]]; then
  library=$(find "$wheels/onnxruntime/capi" -name 'libonnxruntime.so.*' | head -n 1)
  export ORT_DYLIB_PATH=${ORT_DYLIB_PATH:-$library}
  for folder in "$wheels"/nvidia/*/lib "$wheels"/nvidia/*/lib/x86_64; do
    [[ -d $folder ]] && LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  done
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}
fi
exec "$python" scripts/gpu_check.py "$@"
