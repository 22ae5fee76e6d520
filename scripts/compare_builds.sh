#!/usr/bin/env bash
# Compares the bundles that two builds of dlc write, byte by byte.
#
#   scripts/compare_builds.sh OLD NEW [FOLDER]
#   scripts/compare_builds.sh --help
#
# OLD and NEW are `dlc` programs. Every golden, tiny-llama and digits-dit are compiled with both, in
# three profiles, tiny-llama and digits-dit also with their passes. FOLDER keeps the bundles
# (default: a temporary folder). The files that differ are named; a change that keeps behaviour changes
# none, or `dlc.yaml` alone where it changes the manifest.
#
# Exit code: 0 equal, 1 different.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; exit 0 ;;
esac
[[ $# -ge 2 ]] || { echo "compare_builds.sh: name two builds of dlc (see --help)" >&2; exit 2; }
old=$(realpath "$1") new=$(realpath "$2")
out=${3:-$(mktemp -d)}
mkdir -p "$out"
[[ $# -ge 3 ]] || trap 'rm -rf -- "$out"' EXIT

different=0
# NAME, then the arguments of `dlc compile`
both() {
  local name=$1
  shift
  for build in old new; do
    "${!build}" compile -q --force -o "$out/$build/$name" "$@" >/dev/null 2>"$out/$build-$name.log" ||
      echo "exit code $?" >>"$out/$build-$name.log"
  done
  # What one build doesn't know, or both refuse, is compared by what they say.
  if [[ ! -e $out/old/$name || ! -e $out/new/$name ]]; then
    diff -q "$out/old-$name.log" "$out/new-$name.log" >/dev/null ||
      { different=1; echo "$name: different answers: $(tail -n 1 "$out/old-$name.log" | cut -c 1-120)"; }
  elif ! diff -rq "$out/old/$name" "$out/new/$name" >"$out/$name.files"; then
    different=1
    echo "$name: $(sed -E 's/^Files .*\/([^ ]+) and .*/\1/; s/^Only in .*: /only one has /' "$out/$name.files" | paste -sd ' ')"
  fi
}

mkdir -p "$out/old" "$out/new"
for golden in fixtures/goldens/*/; do
  [[ -e $golden/config.json ]] || continue
  for profile in portable onnx ort; do
    both "$(basename "$golden")-$profile" "$golden" --profile "$profile"
  done
done
for profile in portable ort; do
  both "tiny-llama-$profile" fixtures/tiny-llama --profile "$profile" --pass fit-prune
  both "tiny-llama-$profile-int4" fixtures/tiny-llama --profile "$profile" \
    --pass fit-prune --pass quantize-draft
  both "digits-dit-$profile" fixtures/digits-dit --profile "$profile" --pass skip:interval=2
done
[[ $different == 0 ]] && echo "every bundle is the same, byte by byte"
exit "$different"
