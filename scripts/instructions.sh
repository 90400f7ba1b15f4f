#!/usr/bin/env bash
# Counts the instructions that a request takes without any I/O, from the available ring to the used ring, and compares
# them with those that were accepted (backend/benches/instructions.txt).
#
#   scripts/instructions.sh            fails when a figure has grown by more than 5 %
#   scripts/instructions.sh --accept   writes what it counts to that file
#
# valgrind's callgrind counts them of a run over N requests and of one over 2N: what they differ by is the requests', so
# that starting and ending do not count. The figures do not depend on how busy the machine is, and hardly on its CPU: the
# disk moves no data. They depend on the compiler; a new one needs new figures.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
accepted=backend/benches/instructions.txt
tolerance=5
requests=9600

case ${1-} in
  '' | --accept) ;;
  *)
    echo "instructions: unknown argument '$1': there is --accept" >&2
    exit 2
    ;;
esac
command -v valgrind >/dev/null || {
  echo 'instructions: there is no valgrind: scripts/setup.sh count installs it' >&2
  exit 1
}
cargo build --release --locked --quiet -p sluice-backend --example requests
program=${CARGO_TARGET_DIR:-target}/release/examples/requests

# count KIND BATCH REQUESTS: the instructions of a whole run. Which memcpy(3) the C library chooses depends on the CPU:
# without its vectors it is the same everywhere.
count() {
  local tunables=glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX512F,-AVX512VL,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM
  GLIBC_TUNABLES=$tunables valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$@" 2>&1 |
    sed -n 's/^.*Collected : *//p'
}

counted=$(
  for kind in read-direct read-indirect write-direct write-indirect; do
    for batch in 1 32; do
      once=$(count "$kind" "$batch" "$requests")
      twice=$(count "$kind" "$batch" $((2 * requests)))
      printf '%-14s %2d %5d\n' "$kind" "$batch" $(((twice - once) / requests))
    done
  done
)
if [[ ${1-} == --accept ]]; then
  {
    echo '# Instructions for a request without I/O: its kind, how many come at a time, how many it takes.'
    echo "# Counted by scripts/instructions.sh with $(rustc --version)."
    printf '%s\n' "$counted"
  } >"$accepted"
  printf '%s\n' "$counted"
  exit
fi

printf '%-14s %5s %8s %8s\n' request batch accepted counted
worse=no better=no
while read -r kind batch now; do
  was=$(awk -v kind="$kind" -v batch="$batch" '$1 == kind && $2 == batch { print $3 }' "$accepted")
  note=''
  if [[ -z $was ]]; then
    worse=yes note='  new'
  elif ((now * 100 > was * (100 + tolerance))); then
    worse=yes note="  more than $tolerance % more"
  elif ((now * 100 < was * (100 - tolerance))); then
    better=yes note="  more than $tolerance % less"
  fi
  printf '%-14s %5d %8s %8d%s\n' "$kind" "$batch" "${was:--}" "$now" "$note"
done <<<"$counted"
if [[ $worse == yes ]]; then
  echo "instructions: requests take more than was accepted. If that is worth it: scripts/instructions.sh --accept" >&2
  exit 1
fi
if [[ $better == yes ]]; then
  echo "instructions: requests take less than was accepted, well done. So that it stays: scripts/instructions.sh --accept"
fi
