#!/usr/bin/env bash
# Measures what quantising a decoder costs and brings: for each way, KL divergence, agreement and perplexity against the f32
# bundle on held-back text, both on ONNX Runtime, the size of the weights, and plain decoding by turns with f32.
#
# Usage: scripts/measure_quantization.sh [--turns N] [--threads N] CHECKPOINT [DLC] [OPTIONS...]
#   DLC is target/release/dlc by default; OPTIONS are those of the pass quantize, one set a row:
#   bits=8 bits=4,method=rtn bits=mixed,budget=6
# Prints a Markdown table; speeds are medians over the turns (default 5) as ratios to f32. Needs ONNX Runtime as `dlc doctor` finds it.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 0
fi
turns=5
threads=2
while [[ ${1:-} == --turns || ${1:-} == --threads ]]; do
  declare "${1#--}=$2"
  shift 2
done
checkpoint=${1:?name a checkpoint; see --help}
dlc=$(realpath "${2:-target/release/dlc}")
ways=("${@:3}")
if ((${#ways[@]} == 0)); then
  ways=(bits=8 bits=4,method={rtn,hqq,imatrix,gptq} bits=mixed,budget=6)
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
prompt="The history of the world is the history of"

compile() { "$dlc" compile "$checkpoint" --profile ort "${@:2}" -o "$out/$1" --quiet >/dev/null 2>"$out/error" || { cat "$out/error" >&2; exit 1; }; }
speed() { "$dlc" run "$out/$1" --prompt "$prompt" --max-tokens 48 --no-draft --no-lookup --threads "$threads" --json --quiet | jq '.[0].stats.tokens_per_second'; }
median() { sort -g | awk '{ n[NR] = $1 } END { print n[int((NR + 1) / 2)] }'; }

echo "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
echo "| options of quantize | MB of weights | bits per weight | KL mean | KL 99% | same likeliest | perplexity, f32 and quantised | speed over f32 |"
echo "|---|---|---|---|---|---|---|---|"
compile f32
for way in "${ways[@]}"; do
  compile quantised --pass "quantize:$way,compare=false" --force
  "$dlc" compare "$out/f32" "$out/quantised" --threads "$threads" --json --quiet >"$out/found"
  : >"$out/ratios"
  for ((turn = 0; turn < turns; turn++)); do
    whole=$(speed f32)
    jq -n "$(speed quantised) / $whole" >>"$out/ratios"
  done
  jq -r --arg way "$way" --arg speed "$(median <"$out/ratios")" '
    def digits(n): . * pow(10; n) | round / pow(10; n);
    "| `\($way)` | \(.b.weight_bytes / 1e6 | digits(1)) | \(.b.bits_per_weight | digits(2)) | \(.kl.mean | digits(5)) | \(.kl.p99 | digits(4)) | \(100 * .agreement | digits(1))% | \(.a.perplexity | digits(3)), \(.b.perplexity | digits(3)) | \($speed | tonumber | digits(2)) |"' "$out/found"
done
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)"
