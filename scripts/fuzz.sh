#!/usr/bin/env bash
# Fuzzes what reads strangers' files, guided by coverage (libFuzzer).
#
#   scripts/fuzz.sh [--seconds N | --runs N] [TARGET]...
#
# Without TARGET all of them, N seconds each (default 60), two at a time. The random seed is fixed. An input that breaks a target stays in
# target/fuzz/TARGET/; move it to fuzz/regressions/TARGET/, where a test keeps it.
#
# dlc's own crates are compiled anew with coverage counters; their dependencies are those of `cargo build`. Needs a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

bound=-max_total_time=60
targets=()
while (($#)); do
  case $1 in
    --seconds) bound=-max_total_time=${2:?} && shift ;;
    --runs) bound=-runs=${2:?} && shift ;;
    -*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0" && exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
((${#targets[@]})) || mapfile -t targets < <(sed -n 's/^ *name: "\([^"]*\)",$/\1/p' fuzz/src/targets.rs)

root=$PWD/target/fuzz
mkdir -p "$root"
wrapper=$root/with-counters
cat >"$wrapper" <<'WRAPPER'
#!/bin/sh
# Called by cargo for the crates of the workspace alone.
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
WRAPPER
chmod +x "$wrapper"

export RUSTC_WORKSPACE_WRAPPER=$wrapper
fuzzer=$(cargo test --locked --workspace --features dlc-fuzz/libfuzzer --test fuzz --no-run --message-format json |
  sed -n 's/.*"name":"fuzz".*"executable":"\([^"]*\)".*/\1/p')

# A run ends at 2 GB of memory, and where one input takes 10 s.
fuzz() {
  local log=$root/$1/log
  mkdir -p "$root/$1/corpus"
  if DLC_FUZZ_TARGET=$1 DLC_FUZZ_CORPUS=$root/$1/corpus "$fuzzer" -seed=11 "$bound" -rss_limit_mb=2048 -timeout=10 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="$root/$1/" "$root/$1/corpus" >"$log" 2>&1; then
    echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none broke it"
  else
    echo "$1: broken by an input in $root/$1 (see its log)" && tail -n 30 "$log" && return 1
  fi
}
export -f fuzz
export root bound fuzzer
printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -c 'fuzz {}'
rm -rf /dev/shm/dlc-fuzz-*
