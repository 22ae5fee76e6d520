#!/usr/bin/env bash
# Loads bundles with the runtimes that they were written for: Optimum, transformers.js, Sentence Transformers, OpenVINO; builds engines with
# TensorRT for RTX; optimises with onnxslim and onnxsim; checks Triton's configurations. Then compares the table in docs/deployment.md with what came out.
#
# Usage: scripts/check_deployments.sh [--write] [DLC]     DLC is target/debug/dlc by default; --write writes the table instead
# Needs Python 3.11, Node 20 with npm, and 7 GB: Optimum needs PyTorch.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit 0
fi
table=--check
if [[ ${1:-} == --write ]]; then
  table=
  shift
fi
cd "$(dirname "$0")/.."
dlc=${1:-target/debug/dlc}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
results=$out/results
failed=0

# PyTorch takes minutes, in which other checks run.
scripts/pyenv.sh hf >"$out/hf" &
installing=$!
compilers=$(scripts/pyenv.sh compilers)
node=$(scripts/nodeenv.sh transformers_js)
minilm=$(PYTHON="$compilers" scripts/fetch_minilm.sh)

# compile FOLDER CHECKPOINT FLAG...
compile() { "$dlc" compile "$2" "${@:3}" -o "$1" >/dev/null 2>"$out/error" || { cat "$out/error" >&2; exit 1; }; }
check() { "$@" --results "$results" || failed=1; }

for folder in fixtures/goldens/*; do
  golden=$(basename "$folder")
  for profile in portable onnx ort; do
    compile "$out/flat/$golden-$profile" "$folder" --profile "$profile"
  done
  compile "$out/half/$golden-portable" "$folder" --profile portable --dtype f16
  if grep -q '"model_type"' "$folder/config.json"; then
    compile "$out/js/$golden-f32" "$folder" --deploy transformers.js
    compile "$out/js/$golden-f16" "$folder" --deploy transformers.js --dtype f16
    for profile in portable onnx ort; do
      mkdir -p "$out/text"
      ln -s "$out/flat/$golden-$profile" "$out/text/$golden-$profile"
    done
  fi
  grep -qE '"[A-Za-z0-9]*(CausalLM|LMHeadModel)"' "$folder/config.json" || compile "$out/triton/$golden-portable" "$folder" --deploy triton
done
compile "$out/drafts/pruned" fixtures/tiny-llama --no-cache --pass fit-prune:drop=4
compile "$out/drafts/quantised" fixtures/tiny-llama --no-cache --pass fit-prune:drop=4 --pass quantize-draft
compile "$out/drafts/steps" fixtures/digits-dit --no-cache --pass skip:interval=2
compile "$out/openvino" fixtures/tiny-llama --deploy openvino
compile "$out/minilm" "$minilm" --deploy sentence-transformers

check "$compilers" scripts/check_openvino.py "$out"/flat/*
"$compilers" scripts/check_optimisers.py "$out"/flat/*-{portable,onnx} || failed=1
check "$compilers" scripts/check_triton.py "$out"/triton/*
check "$compilers" scripts/check_tensorrt.py "$out"/flat/*-portable "$out"/half/* "$out"/drafts/*
check node scripts/check_transformers_js.mjs "$node" "$out"/js/*
wait "$installing"
hf=$(<"$out/hf")
check "$hf" scripts/check_optimum.py "$out"/text/*
check "$hf" scripts/check_sentence_transformers.py "$out/minilm=$minilm"

prompt="And it came to pass in those days, that"
ours=$("$dlc" run "$out/openvino" --prompt "$prompt" --max-tokens 16)
theirs=$("$compilers" scripts/load_openvino.py "$out/openvino" "$prompt" 16)
if [[ $ours != "$theirs" ]]; then
  printf 'FAILED  load_openvino.py: %s\n        dlc run: %s\n' "$theirs" "$ours"
  failed=1
fi
"$compilers" scripts/write_deployments.py "$results" $table || failed=1
exit "$failed"
