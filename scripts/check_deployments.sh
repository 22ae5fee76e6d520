#!/usr/bin/env bash
# Loads bundles of the goldens with the runtimes that they were written for: ONNX Runtime, onnxruntime-genai, onnxruntime-web, Optimum,
# transformers.js, Sentence Transformers, OpenVINO; builds engines with TensorRT for RTX; checks Triton's configurations; optimises with onnxslim
# and onnxsim. Then compares the table in docs/deployment.md with what came out.
#
# Usage: scripts/check_deployments.sh [--write | --quick] [DLC]     DLC is target/debug/dlc by default
#   --write   writes the table instead of comparing it
#   --quick   what CI runs: one golden of each family and one pipeline, in f16 for TensorRT alone, without MiniLM, the optimisers and the table
# Needs Python 3.11, Node 20 with npm, and 9 GB: Optimum needs PyTorch.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit 0
fi
mode=check
if [[ ${1:-} == --write || ${1:-} == --quick ]]; then
  mode=${1#--}
  shift
fi
cd "$(dirname "$0")/.."
dlc=$(realpath "${1:-target/debug/dlc}")
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

quick() { [[ $mode == quick ]]; }
step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }
family() { grep -m 1 -oE '"(model_type|_class_name)": "[^"]*"' "$1/config.json"; }
is_text() { grep -q '"model_type"' "$1/config.json"; }
is_decoder() { grep -qE '"[A-Za-z0-9]*(CausalLM|LMHeadModel)"' "$1/config.json"; }

# The goldens to look at: all, or the first of each family.
goldens() {
  local seen=' '
  for folder in fixtures/goldens/*; do
    if quick && [[ $seen == *" $(family "$folder") "* ]]; then continue; fi
    seen+="$(family "$folder") "
    echo "$folder"
  done
}

# A checkpoint of sentence vectors made of a golden: tokenizer and pooling are those of a small checkpoint.
write_sentence_encoder() {
  local case=fixtures/cases/sentence-not-normalized folder=$out/checkpoints/$(basename "$1")
  [[ $(basename "$1") == qwen3-encoder ]] && case=fixtures/cases/sentence-last-token
  mkdir -p "$folder"
  cp -r "$case"/{modules.json,tokenizer.json,1_Pooling} "$1"/{config.json,model.safetensors} "$folder"
  # The fixture was saved by transformers 5, whose name for the class transformers 4 doesn't know.
  sed 's/"TokenizersBackend"/"PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]/' \
    "$case/tokenizer_config.json" >"$folder/tokenizer_config.json"
}

# The arguments of each compilation, one a line.
compilations() {
  local folder golden profile
  while read -r folder; do
    golden=$(basename "$folder")
    for profile in portable onnx ort; do
      echo "$folder --profile $profile -o $out/flat/$golden-$profile"
    done
    ! is_text "$folder" || echo "$folder --deploy transformers.js -o $out/js/$golden-f32"
    is_decoder "$folder" || echo "$folder --deploy triton -o $out/triton/$golden-portable"
    echo "$folder --profile portable --dtype f16 -o $out/half/$golden-portable"
    quick || ! is_text "$folder" || echo "$folder --deploy transformers.js --dtype f16 -o $out/js/$golden-f16"
  done
  echo "fixtures/tiny-llama --deploy openvino -o $out/openvino"
  echo "fixtures/pipelines/sd15 --deploy optimum -o $out/pipelines/f32/sd15"
  for folder in "$out"/checkpoints/*; do
    echo "$folder --deploy sentence-transformers -o $out/sentences/$(basename "$folder")"
  done
  echo "fixtures/tiny-llama --no-cache --pass fit-prune:drop=4 -o $out/drafts/pruned"
  echo "fixtures/tiny-llama --no-cache --pass fit-prune:drop=4 --pass quantize-draft -o $out/drafts/quantised"
  echo "fixtures/digits-dit --no-cache --pass skip:interval=2 -o $out/drafts/steps"
  quick && return
  for pipeline in {f16/sd15,{f32,f16}/{sd2,sdxl}}; do
    echo "fixtures/pipelines/$(basename "$pipeline") --deploy optimum --dtype $(dirname "$pipeline") -o $out/pipelines/$pipeline"
  done
}

# Environments of other processes' making come while bundles are compiled; PyTorch takes minutes, in which other checks run.
step "installing and compiling"
scripts/pyenv.sh hf >"$out/hf" &
installing=$!
scripts/nodeenv.sh transformers_js >"$out/transformers_js" &
nodes=$!
scripts/pyenv.sh >"$out/python" &
pythons=$!
compilers=$(scripts/pyenv.sh compilers)
for folder in fixtures/goldens/*-encoder; do write_sentence_encoder "$folder"; done
if ! quick; then
  ln -s "$(PYTHON="$compilers" scripts/fetch_minilm.sh)" "$out/checkpoints/all-MiniLM-L6-v2"
fi
goldens | compilations | xargs -P "$(nproc)" -L 1 "$dlc" compile --quiet >/dev/null
wait "$pythons"
python=$(<"$out/python")
wait "$nodes"
transformers_js=$(<"$out/transformers_js")
onnxruntime_web=$(scripts/nodeenv.sh onnxruntime_web)

# attempt PROGRAM SCRIPT ARGUMENT...: one check. Of its lines, one for each bundle, those that aren't `ok` are shown.
attempt() {
  step "$(basename "$2")"
  local status=0 log=$out/log.$BASHPID
  "$@" >"$log" 2>&1 || status=$?
  grep -E '^(FAILED|known) ' "$log" || ((status == 0)) || tail -n 20 "$log"
  printf '%d as they should be\n' "$(grep -c '^ok ' "$log")"
  ((status == 0)) || failed=1
}

# check ARGUMENT...: the same; its results go with the others of this process.
check() { attempt "$@" --results "$out/results.$BASHPID"; }

check_javascript() {
  check node scripts/check_onnxruntime_web.mjs "$onnxruntime_web" "$out"/flat/*
  check node scripts/check_transformers_js.mjs "$transformers_js" "$out"/js/*
  mv "$out/results.$BASHPID" "$out/results.javascript"
  exit "$failed"
}

decoders=()
for folder in "$out"/flat/*-ort; do
  [[ ! -f $folder/genai_config.json ]] || decoders+=("$folder")
done
# These take one processor, those in Python the other.
check_javascript >"$out/javascript" &
javascript=$!
check "$python" scripts/check_onnxruntime.py "$out"/flat/*
check "$python" scripts/check_onnxruntime.py --genai "${decoders[@]}"
check "$compilers" scripts/check_openvino.py "$out"/flat/*
check "$compilers" scripts/check_triton.py "$out"/triton/*
check "$compilers" scripts/check_tensorrt.py "$out"/flat/*-portable "$out"/half/* "$out"/drafts/*

step "load_openvino.py"
prompt="And it came to pass in those days, that"
ours=$("$dlc" run "$out/openvino" --prompt "$prompt" --max-tokens 16)
theirs=$("$compilers" scripts/load_openvino.py "$out/openvino" "$prompt" 16)
if [[ $ours != "$theirs" ]]; then
  printf 'FAILED  load_openvino.py: %s\n        dlc run: %s\n' "$theirs" "$ours"
  failed=1
fi

wait "$javascript" || failed=1
cat "$out/javascript"

wait "$installing"
hf=$(<"$out/hf")
optimum_loads() {
  for golden in $(goldens); do
    ! is_text "$golden" || echo "$out/flat/$(basename "$golden")"-portable
    ! is_text "$golden" || quick || echo "$out/flat/$(basename "$golden")"-{onnx,ort}
  done
}
check "$hf" scripts/check_optimum.py $(optimum_loads)
check "$hf" scripts/check_sentence_transformers.py $(for folder in "$out"/sentences/*; do echo "$folder=$out/checkpoints/$(basename "$folder")"; done)
attempt "$hf" scripts/check_optimum_pipelines.py "$dlc" "$out"/pipelines/*/*

if ! quick; then
  attempt "$compilers" scripts/check_optimisers.py "$out"/flat/*-{portable,onnx}
  table=--check
  [[ $mode != write ]] || table=
  cat "$out/results.javascript" "$out/results.$BASHPID" >"$out/results"
  "$compilers" scripts/write_deployments.py "$out/results" $table || failed=1
fi
step "done"
exit "$failed"
