#!/usr/bin/env bash
# Installs the npm packages of a script in this folder.
#
#   scripts/nodeenv.sh NAME
#   scripts/nodeenv.sh --help
#
# Installs scripts/NAME/package.json into target/node-NAME and prints the path of that folder as the
# only line on stdout. NAME is transformers_js or llama_cpp. No package runs a script of its own. Does nothing if the folder already
# holds what package.json asks for. Needs Node 20 or newer with npm.
set -euo pipefail

die() { echo "nodeenv.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  '' | -*) echo "nodeenv.sh: NAME is missing (see --help)" >&2; exit 2 ;;
esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
wanted=$here/$1/package.json
folder=$(dirname -- "$here")/target/node-$1
[[ -f $wanted ]] || die "there is no $wanted"
stamp=$folder/.installed.json

# The stamp is written last: it equals package.json only after a complete installation.
if ! cmp -s "$wanted" "$stamp"; then
  command -v npm >/dev/null || die "npm is not installed; install Node 20 or newer with npm"
  echo "nodeenv.sh: installing $wanted into $folder" >&2
  rm -f -- "$stamp"
  mkdir -p -- "$folder"
  cp -- "$wanted" "$folder/package.json"
  npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --no-package-lock --silent >&2 ||
    die "npm could not install $wanted"
  cp -- "$wanted" "$stamp"
fi
echo "$folder"
