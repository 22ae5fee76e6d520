#!/usr/bin/env bash
# Takes released models from their published file to text and vectors, and compares with other people's programs: decoders
# from GGUF files with llama.cpp on the same file, all-MiniLM-L6-v2 with what transformers says.
#
# Usage: scripts/check_models.sh [--runs N] [--threads N] [DLC] [NAME...]     DLC is target/release/dlc by default; NAMEs are those of
#                                                      fetch_gguf.sh, by default smollm2 qwen2.5-coder-0.5b gemma3-270m
# Prints what was compared, then the tokens per second of both programs, which run by turns, --runs times each (default 3), on --threads
# threads (default 2; llama.cpp's wait for each other, so take 1 on a busy machine), the most memory that each process held, mapped files
# included, and what else kept the machine busy.
# Needs Python 3.11, Node 20 with npm, GNU time, 1.5 GB of downloads and 8 GB of disk; ONNX Runtime as `dlc doctor` finds it.
set -euo pipefail
if [[ ${1:-} == --help ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  exit 0
fi
runs=3
threads=2
while [[ ${1:-} == --runs || ${1:-} == --threads ]]; do
  declare "${1#--}=$2"
  shift 2
done
cd "$(dirname "$0")/.."
dlc=${1:-target/release/dlc}
names=("${@:2}")
if ((${#names[@]} == 0)); then names=(smollm2 qwen2.5-coder-0.5b gemma3-270m); fi
python=$(scripts/pyenv.sh)
node=$(scripts/nodeenv.sh llama_cpp)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

# measured NAME COMMAND...: runs the command; its seconds and most memory in kB stand in $out/NAME.
measured() { command time -f '%e %M' -o "$out/$1" "${@:2}"; }
# The line that GNU time wrote last, as text.
describe() { awk -v what="$1" 'END { printf "%s: %.1f s, at most %.0f MB\n", what, $1, $2 / 1000 }' "$out/$2"; }
load() { printf 'load of the machine, before both began: %s, of %d processors\n' "$(cut -d' ' -f1-3 /proc/loadavg)" "$(nproc)"; }

for name in "${names[@]}"; do
  gguf=$(PYTHON="$python" scripts/fetch_gguf.sh "$name")
  printf '\n%s\n' "$name"
  measured compile "$dlc" compile "$gguf" --profile ort -o "$out/bundle" --quiet >/dev/null
  "$dlc" verify "$out/bundle" --quiet >/dev/null
  load
  for ((run = 0; run < runs; run++)); do
    measured theirs node scripts/write_llama_cpp.mjs "$node" "$gguf" scripts/models.jsonl 48 "$threads" >"$out/theirs.$run"
    measured ours "$dlc" run "$out/bundle" --prompts scripts/models.jsonl --max-tokens 48 \
      --no-generation-config --no-lookup --threads "$threads" --json --quiet >"$out/ours.$run"
  done
  "$python" scripts/check_texts.py "$out/bundle" --theirs "$out"/theirs.* --ours "$out"/ours.* || failed=1
  describe "dlc compile" compile
  describe "dlc run, the last time" ours
  describe "llama.cpp, the last time" theirs
  rm -rf "$out"/*
done

printf '\nall-minilm-l6-v2\n'
minilm=$(PYTHON="$python" scripts/fetch_minilm.sh)
measured compile "$dlc" compile "$minilm" --profile ort -o "$out/bundle" --quiet >/dev/null
"$python" scripts/check_minilm.py "$out/bundle" --checkpoint "$minilm" --dlc "$dlc" || failed=1
describe "dlc compile" compile
measured ours "$dlc" run "$out/bundle" --texts fixtures/prompts.txt --threads "$threads" --json --quiet >"$out/vectors"
describe "dlc run, $(grep -c . fixtures/prompts.txt) texts" ours
exit "$failed"
