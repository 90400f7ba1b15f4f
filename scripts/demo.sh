#!/usr/bin/env bash
# `make demo`: from a fresh machine with a Rust toolchain to fio in a Linux guest on a disk that sluice serves.
#
# Ends with a table of fio's results, and with a non-zero status if anything failed or a block did not verify. Takes a
# few minutes the first time (packages, the build), half a minute after that. Leaves nothing behind but the builds.
set -euo pipefail
root=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/..")
cd "$root"
jobs=guests/fio/demo.fio
steps=6 step=0

next() {
  step=$((step + 1))
  printf '\n==> %d/%d  %s  (after %d s)\n' "$step" "$steps" "$1" "$SECONDS"
}

command -v cargo >/dev/null || {
  echo 'demo: no cargo here: install a Rust toolchain first, see https://rustup.rs' >&2
  exit 1
}

next 'install what is missing: a C compiler, QEMU, archivers'
scripts/setup.sh build
scripts/setup.sh guest

next 'build sluice'
cargo build --release --locked -p sluice-launcher
sluice=${CARGO_TARGET_DIR:-target}/release/sluice

next 'build the guest: a Debian kernel and an initramfs with fio'
guests/linux/build.sh

next 'make a disk of 1 GiB'
work=$(mktemp -d "${TMPDIR:-/var/tmp}/sluice-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
truncate -s 1G "$work/disk.img"
echo "$work/disk.img"

next "boot the guest on it and run fio, $jobs"
status=0
# Without the terminal as its input the VM leaves Ctrl-C to this script.
"$sluice" run --blk-file="$work/disk.img" --job fio --job-arg fio=demo --results "$work/results" </dev/null || status=$?

next 'results'
# The first file is fio's job file, for block size and depth; the second has the guest's results as lines key=value.
awk -f scripts/demo-table.awk "$jobs" "$work/results"
if [[ $status -ne 0 ]]; then
  printf '\ndemo: FAILED with status %d: see above\n' "$status" >&2
  exit 1
fi
printf '\nAll that was read was verified by its CRC-32C. %d s in all.\n' "$SECONDS"
