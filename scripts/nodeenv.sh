#!/usr/bin/env bash
# Installs the npm packages of check_transformers_js.mjs.
#
#   scripts/nodeenv.sh [--help]
#
# Installs scripts/transformers_js/package.json into target/node and prints the path of that folder
# as the only line on stdout. No package runs a script of its own. Does nothing if the folder already
# holds what package.json asks for. Needs Node 20 or newer with npm.
set -euo pipefail

die() { echo "nodeenv.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0"; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  '') ;;
  *) echo "nodeenv.sh: unknown argument: $1 (see --help)" >&2; exit 2 ;;
esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
wanted=$here/transformers_js/package.json
folder=$(dirname -- "$here")/target/node
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
