#!/usr/bin/env bash
# `make test`: every check of the project, unattended, from a fresh clone. Stops at the first stage that fails.
#
# With the name of a stage as argument (lint, unit, instructions, simulation, loom, conformance, faults, hostile, fuzz, guests)
# only that one runs.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
only=${1:-all}
summary=()
target=${CARGO_TARGET_DIR:-target}

# stage NAME GROUP COMMAND...: runs a command, and says what and how long.
stage() {
  local name=$1 group=$2 start=$SECONDS
  shift 2
  [[ $only == all || $only == "$group" ]] || return 0
  printf '\n==> %s\n    %s\n' "$name" "$*"
  "$@"
  summary+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

crates=(-p sluice-mem -p sluice-blk -p sluice-backend -p sluice-launcher)
suites() {
  local suite args=()
  for suite in "$@"; do args+=(--test "$suite"); done
  # The tests start the daemon as a process: the binary that was just built.
  cargo build --locked -p sluice-launcher
  cargo test --locked -p sluice-tests "${args[@]}"
}

# What nobody good sends, at random: more than the tests do by default.
hostile() {
  SLUICE_WIRE_REQUESTS=5000000 SLUICE_MESSAGES=200000 suites wire_fuzz message_fuzz connections
}

# A daemon that is killed in the middle of writes, and disks that fail.
faults() {
  SLUICE_KILLS=2000 SLUICE_UPGRADES=200 SLUICE_POWER_CUTS=10000 suites kill upgrade systemd in_order power reconnect faulty_disk bounds
}

# 75 times each under two kinds of guests.
kills_under_guests() {
  SLUICE_VM_KILLS=75 cargo test --locked -p sluice-tests --test guest_linux kills:: -- --skip migration_kills
}

[[ $only == lint ]] || scripts/setup.sh build
[[ $only != all && $only != instructions ]] || scripts/setup.sh count
[[ $only == lint || $only == unit || $only == instructions || $only == simulation || $only == loom || $only == hostile ||
  $only == fuzz ]] || scripts/setup.sh guest

stage 'format' lint cargo fmt --all --check
stage 'format of the fuzzer' lint cargo fmt --manifest-path fuzz/Cargo.toml --check
stage 'lints: warnings are errors' lint cargo clippy --locked --workspace --all-targets -- -D warnings
stage 'lints of the fuzzer' lint \
  cargo clippy --locked --manifest-path fuzz/Cargo.toml --target-dir "$target" --lib --test corpus -- -D warnings
stage 'documentation: warnings are errors' lint env RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet
stage 'unit and property tests' unit cargo test --locked "${crates[@]}"
stage 'the project checks itself: layers, unsafe, names' unit cargo test --locked -p sluice-tests --lib --test laws
stage 'instructions for a request: not 5 % more than accepted' instructions scripts/instructions.sh
stage 'simulation: 200,000 seeds of queues on one disk' simulation \
  env SLUICE_SEEDS=200000 cargo test --locked --release -p sluice-blk --lib simulation
stage 'threads in every order of their steps' loom cargo test --locked -p sluice-mem -p sluice-blk -p sluice-backend \
  --features sluice-backend/loom --lib loom_
stage 'conformance: the daemon, the adapter and the reference device; libblkio' conformance suites conformance blkio
stage 'faults: 2,000 kills, 10,000 power cuts, disks that fail and hang' faults faults
stage 'hostile: 5,000,000 requests, 200,000 messages, 10,000 connections' hostile hostile
stage 'corpus of the fuzzer, replayed' fuzz \
  cargo test --locked --manifest-path fuzz/Cargo.toml --target-dir "$target"
stage 'fuzzing: 40 s for each target' fuzz scripts/fuzz.sh --if-possible all 40
stage 'guest images' guests sh -c 'guests/bare/build.sh && guests/linux/build.sh'
stage 'guests in virtual machines' guests suites guest_bare guest_linux
stage 'guests while the daemon is killed: 150 times' guests kills_under_guests

printf '\nAll stages passed:\n'
printf '%s\n' "${summary[@]}"
