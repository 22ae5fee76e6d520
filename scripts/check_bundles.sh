#!/usr/bin/env bash
# Checks dlc's bundles with other people's tools: onnx.checker and onnxruntime load every file, onnxruntime-genai decodes what dlc decodes,
# plainly and with the draft; dlc's speculative text equals its plain text over 24 prompts of 64 tokens. all-MiniLM gives the similarities that
# were recorded for it. `dlc compare` finds what numpy finds.
#
# Usage: scripts/check_bundles.sh [PYTHON]     the Python of scripts/pyenv.sh is the default; ONNX Runtime as `dlc doctor` finds it
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit 0
fi
cd "$(dirname "$0")/.."
python=${1:-$(scripts/pyenv.sh)}
cargo build --locked --workspace --tests --quiet
dlc=target/debug/dlc
smollm2=target/models/smollm2-135m-off-grid
[[ -f $smollm2/config.json ]] || DLC=$dlc scripts/fetch_smollm2.sh "$smollm2"
minilm=$(PYTHON="$python" scripts/fetch_minilm.sh)

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# As many at a time as there are processors; each says on stderr what is wrong.
at_once() { xargs -P "$(nproc)" "$@" >/dev/null; }

for folder in fixtures/goldens/*; do
  for profile in portable onnx ort; do
    echo "$folder --profile $profile -o $out/$(basename "$folder")-$profile"
  done
done | at_once -L 1 "$dlc" compile
"$dlc" compile fixtures/goldens/qwen3 --dtype f16 --profile onnx -o "$out/qwen3-f16" >/dev/null
"$dlc" compile fixtures/tiny-llama --no-cache --pass fit-prune:drop=4 --profile ort -o "$out/tiny-llama" >/dev/null
"$dlc" compile "$smollm2" --no-cache --pass fit-prune:drop=3,samples=2,length=64 --profile ort -o "$out/smollm2" >/dev/null
"$dlc" compile "$minilm" --profile onnx -o "$out/minilm" >/dev/null
"$python" scripts/check_onnx.py "$out"/*
"$python" scripts/check_minilm.py "$out/minilm" --checkpoint "$minilm"
printf '%s\n' "$out"/* | at_once -n 1 "$dlc" verify
"$dlc" compile fixtures/tiny-llama --no-cache --pass quantize:bits=4,method=rtn,compare=false --profile onnx -o "$out/quantised" >/dev/null
"$python" scripts/check_onnx.py "$out/quantised"
"$dlc" verify "$out/quantised"
for bits in 8 4; do
  "$dlc" compile fixtures/tiny-llama --no-cache --pass "quantize-draft:bits=$bits" --profile onnx -o "$out/int$bits" >/dev/null
  "$python" scripts/check_onnx.py "$out/int$bits"
  comparison=("$out/int$bits" "$out/int$bits" --graph draft --text src/pipeline/comparison/text.txt --length 100)
  "$dlc" compare "${comparison[@]}" --json >"$out/int$bits.json"
  "$python" scripts/check_compare.py "${comparison[@]}" --expect "$out/int$bits.json"
done

for model in tiny-llama smollm2; do
  "$dlc" bench "$out/$model" --prompts fixtures/prompts.txt --max-tokens 64 --repeats 1
  head -n 4 fixtures/prompts.txt >"$out/prompts.txt"
  "$dlc" run "$out/$model" --prompts "$out/prompts.txt" --max-tokens 32 --json >"$out/$model.json"
  "$python" scripts/check_genai.py "$out/$model" --expect "$out/$model.json" --max-tokens 32
done
