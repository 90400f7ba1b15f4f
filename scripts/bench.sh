#!/usr/bin/env bash
# `make bench`: from a fresh machine with a Rust toolchain to a table of how fast sluice is beside other backends.
#
# Arguments go to `sluice bench`. The table is printed, and kept in target/bench with all figures (bench.json) and a
# chart (bench.svg). For honest figures let nothing else run meanwhile.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
target=${CARGO_TARGET_DIR:-target}
results=$target/bench

command -v cargo >/dev/null || {
  echo 'bench: no cargo here: install a Rust toolchain first, see https://rustup.rs' >&2
  exit 1
}
printf '==> install what is missing: a C compiler, QEMU'"'"'s storage daemon\n' >&2
scripts/setup.sh build
scripts/setup.sh bench

printf '==> build sluice and the reference device\n' >&2
# One after the other: together, what the tests ask of a library would be in sluice too.
cargo build --release --locked -p sluice-launcher
cargo build --release --locked -p sluice-tests --bin reference-device

printf '==> measure\n' >&2
mkdir -p "$results"
"$target/release/sluice" bench --json "$results/bench.json" --chart "$results/bench.svg" "$@" | tee "$results/bench.txt"
