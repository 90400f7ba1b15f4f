#!/usr/bin/env bash
# Fuzzes the targets in fuzz/, all at the same time.
#
#   scripts/fuzz.sh [--if-possible] [TARGET|all [SECONDS]]     all of them for 60 s by default
#
# Needs a nightly toolchain, a C++ compiler and cargo-fuzz; the latter two are installed if missing. With --if-possible it is
# no failure that there is no nightly. New inputs go to target/fuzz/corpus, what was found to target/fuzz/found; for the
# corpus in the repository see docs/hostile.md.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
version=0.13.2

must=yes
if [[ ${1:-} == --if-possible ]]; then
  must=no
  shift
fi
targets=(chains messages inflight config)
[[ ${1:-all} == all ]] || targets=("$1")
seconds=${2:-60}

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo 'fuzz: there is no nightly toolchain: rustup toolchain install nightly'
  [[ $must == no ]] && exit 0
  exit 1
fi
scripts/setup.sh build fuzz

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
fuzzer=$(command -v cargo-fuzz || true)
if [[ -z $fuzzer ]]; then
  fuzzer=$target/tools/bin/cargo-fuzz
  [[ -x $fuzzer ]] || CARGO_TARGET_DIR=$target/tools/build \
    cargo install --quiet --locked --version "$version" --root "$target/tools" cargo-fuzz
fi
export CARGO_TARGET_DIR=$target/build
PATH=$(dirname "$fuzzer"):$PATH cargo +nightly fuzz build --features libfuzzer

export TMPDIR=$target/tmp
mkdir -p "$TMPDIR" "$target/found"
declare -A running
for name in "${targets[@]}"; do
  mkdir -p "$target/corpus/$name"
  "$target/build/x86_64-unknown-linux-gnu/release/$name" -max_total_time="$seconds" -max_len=2048 -timeout=20 \
    -print_final_stats=1 -artifact_prefix="$target/found/$name-" "$target/corpus/$name" "fuzz/corpus/$name" \
    >"$target/$name.log" 2>&1 &
  running[$name]=$!
done
status=0
for name in "${targets[@]}"; do
  if wait "${running[$name]}"; then
    printf 'fuzz: %-10s %s, %s new inputs\n' "$name" \
      "$(sed -n 's/^Done \(.*\)/\1/p' "$target/$name.log")" \
      "$(sed -n 's/^stat::new_units_added: *//p' "$target/$name.log")"
  else
    status=1
    grep -vE '^(#|INFO|NEW|REDUCE)' "$target/$name.log" | tail -n 60
    printf 'fuzz: %s has found something: see %s\n' "$name" "$target/found"
  fi
done
exit "$status"
