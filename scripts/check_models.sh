#!/usr/bin/env bash
# Takes released models from their published file to text and vectors, and compares with other people's programs: decoders
# from GGUF files with llama.cpp on the same file, all-MiniLM-L6-v2 with what transformers says.
#
# Usage: scripts/check_models.sh [DLC] [NAME...]     DLC is target/release/dlc by default; NAMEs are those of fetch_gguf.sh, by default
#                                                    smollm2 qwen2.5-coder-0.5b gemma3-270m
# Prints what was compared, then the tokens per second of both programs, one after the other on 2 threads, and dlc's peak memory.
# Needs Python 3.11, Node 20 with npm, GNU time, 1.5 GB of downloads and 8 GB of disk; ONNX Runtime as `dlc doctor` finds it.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 0
fi
cd "$(dirname "$0")/.."
dlc=${1:-target/release/dlc}
names=("${@:2}")
if ((${#names[@]} == 0)); then names=(smollm2 qwen2.5-coder-0.5b gemma3-270m); fi
python=$(scripts/pyenv.sh)
node=$(scripts/nodeenv.sh llama_cpp)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

for name in "${names[@]}"; do
  gguf=$(PYTHON="$python" scripts/fetch_gguf.sh "$name")
  printf '\n%s\n' "$name"
  "$dlc" compile "$gguf" --profile ort -o "$out/bundle" --quiet >/dev/null
  "$dlc" verify "$out/bundle" --quiet >/dev/null
  node scripts/write_llama_cpp.mjs "$node" "$gguf" scripts/models.jsonl 48 >"$out/theirs"
  command time -f %M -o "$out/memory" "$dlc" run "$out/bundle" --prompts scripts/models.jsonl --max-tokens 48 \
    --no-generation-config --no-lookup --threads 2 --json --quiet >"$out/ours"
  "$python" scripts/check_texts.py "$out/bundle" --theirs "$out/theirs" --ours "$out/ours" || failed=1
  printf 'peak memory of dlc run: %d MB\n' "$(($(<"$out/memory") / 1000))"
  rm -rf "$out/bundle"
done

printf '\nall-minilm-l6-v2\n'
minilm=$(PYTHON="$python" scripts/fetch_minilm.sh)
"$dlc" compile "$minilm" --profile ort -o "$out/minilm" --quiet >/dev/null
"$python" scripts/check_minilm.py "$out/minilm" --checkpoint "$minilm" || failed=1
exit "$failed"
