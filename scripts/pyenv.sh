#!/usr/bin/env bash
# Makes or updates the private Python environment of the scripts in this folder.
#
#   scripts/pyenv.sh [NAME]
#   scripts/pyenv.sh --help
#
# Installs scripts/requirements.txt, or scripts/requirements-NAME.txt, into a virtual environment
# and prints the path of its `python` as the only line on stdout, so that it can be used in place:
#
#   "$(scripts/pyenv.sh)" scripts/check_onnx.py BUNDLE
#
# Does nothing if the environment already holds what the file asks for.
#
# Environment:
#   DLC_PYENV   where the virtual environment lies (default: target/pyenv of this repository); that
#               of a NAME lies beside it, with -NAME after it
#   PYTHON      the interpreter that makes it, 3.11 or newer (default: python3)
set -euo pipefail

die() { echo "pyenv.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  -*) echo "pyenv.sh: unknown option: $1 (see --help)" >&2; exit 2 ;;
esac
if (($# > 1)); then echo "pyenv.sh: more than one NAME (see --help)" >&2; exit 2; fi

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
suffix=${1:+-$1}
requirements=$here/requirements$suffix.txt
[[ -f $requirements ]] || die "there is no $requirements"
venv=${DLC_PYENV:-$(dirname -- "$here")/target/pyenv}$suffix
base=${PYTHON:-python3}
stamp=$venv/dlc-requirements.txt

# Windows puts the interpreter elsewhere.
python_in() {
  if [[ -e $1/Scripts/python.exe ]]; then echo "$1/Scripts/python.exe"; else echo "$1/bin/python"; fi
}

runs() { "$(python_in "$venv")" -c '' 2>/dev/null; }

# The stamp is written last: it equals the file only after a complete installation.
if cmp -s "$requirements" "$stamp" && runs; then
  python_in "$venv"
  exit 0
fi

"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  die "'$base' is not a Python of at least 3.11; set PYTHON to one"
if [[ -e $venv && ! -e $venv/pyvenv.cfg ]]; then
  die "$venv exists and is not a virtual environment; remove it, or set DLC_PYENV"
fi

echo "pyenv.sh: installing $requirements into $venv" >&2
rm -f -- "$stamp"
# One whose interpreter no longer runs (its base was removed) is made anew.
runs || "$base" -m venv --clear "$venv" ||
  die "cannot make a virtual environment at $venv (is Python's venv module installed?)"
python=$(python_in "$venv")
"$python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2 ||
  die "pip could not install $requirements (see above)"
cp -- "$requirements" "$stamp"
echo "$python"
