#!/usr/bin/env bash
# Fetches ONNX Runtime's shared library, the faster backend of dlc, from its PyPI wheel.
#
#   scripts/fetch_onnxruntime.sh [--gpu] [DEST]
#   scripts/fetch_onnxruntime.sh --help
#
# DEST defaults to ${XDG_DATA_HOME:-$HOME/.local/share}/dlc/onnxruntime. It receives the library
# under its versioned name and under a stable one (libonnxruntime.so, libonnxruntime.dylib or
# onnxruntime.dll). The path of the stable one is the only line on stdout:
#
#   export ORT_DYLIB_PATH=$(scripts/fetch_onnxruntime.sh)
#
# --gpu takes the CUDA build (Linux and Windows, a few hundred MB) with its provider libraries.
#       It needs CUDA's own libraries, which are not part of it, on the loader's path.
#
# Does nothing if DEST already holds this build at this version; otherwise replaces what an
# earlier run put there.
#
# Environment:
#   PYTHON   an interpreter with pip (default: python3)
set -euo pipefail

version=1.31.1

die() { echo "fetch_onnxruntime.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

package=onnxruntime
dest=
for arg in "$@"; do
  case $arg in
    -h | --help) usage; exit 0 ;;
    --gpu) package=onnxruntime-gpu ;;
    -*) echo "fetch_onnxruntime.sh: unknown option: $arg (see --help)" >&2; exit 2 ;;
    *)
      if [[ -n $dest ]]; then echo "fetch_onnxruntime.sh: more than one DEST (see --help)" >&2; exit 2; fi
      dest=$arg
      ;;
  esac
done
if [[ -z $dest ]]; then
  data=${XDG_DATA_HOME:-${HOME:+$HOME/.local/share}}
  dest=${data:?neither XDG_DATA_HOME nor HOME is set; give DEST}/dlc/onnxruntime
fi
python=${PYTHON:-python3}

case $(uname -s) in
  Darwin) stable=libonnxruntime.dylib ;;
  MINGW* | MSYS* | CYGWIN*) stable=onnxruntime.dll ;;
  *) stable=libonnxruntime.so ;;
esac

# The manifest's first line says which build lies here, the others name the files of it.
manifest=$dest/.fetched
current() { [[ -f $manifest && $(head -n 1 -- "$manifest") == "$package $version" && -e $dest/$stable ]]; }
answer() { (cd -- "$dest" && echo "$PWD/$stable"); }

if current; then
  answer
  exit 0
fi

"$python" -m pip --version >/dev/null 2>&1 ||
  die "'$python -m pip' does not run; set PYTHON to an interpreter that has pip"
mkdir -p -- "$dest" || die "cannot create $dest"
work=$(mktemp -d "$dest/.fetching.XXXXXX") || die "cannot write to $dest"
trap 'rm -rf -- "$work"' EXIT

echo "fetch_onnxruntime.sh: downloading $package $version" >&2
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --dest "$work" "$package==$version" >&2 ||
  die "pip could not download $package $version for this platform and this Python (see above)"

# Unpacks the wanted members of the wheel, flat, and prints their names.
files=$("$python" - "$work" "$package" <<'PY'
import pathlib
import re
import sys
import zipfile

work, package = pathlib.Path(sys.argv[1]), sys.argv[2]
library = r"libonnxruntime\.so\.[\d.]+|libonnxruntime\.[\d.]+\.dylib|onnxruntime\.dll"
providers = r"|(lib)?onnxruntime_providers_\w+\.(so|dll)" if package.endswith("-gpu") else ""
wanted = re.compile(rf"onnxruntime/capi/({library}{providers})")
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for member in archive.namelist():
        if wanted.fullmatch(member):
            name = member.rsplit("/", 1)[1]
            (work / name).write_bytes(archive.read(member))
            print(name)
PY
) || die "cannot unpack the wheel of $package $version"
library=$(grep -E '^(libonnxruntime\.(so|[0-9])|onnxruntime\.dll)' <<<"$files") ||
  die "the wheel of $package $version holds no shared library"

if [[ -f $manifest ]]; then
  tail -n +2 -- "$manifest" | while IFS= read -r old; do rm -f -- "$dest/${old##*/}"; done
  rm -f -- "$manifest"
fi
while IFS= read -r name; do
  chmod 755 "$work/$name"
  mv -f -- "$work/$name" "$dest/$name"
done <<<"$files"
if [[ $library != "$stable" ]]; then
  ln -sfn -- "$library" "$dest/$stable"
  files+=$'\n'$stable
fi
printf '%s %s\n%s\n' "$package" "$version" "$files" >"$manifest"
answer
