#!/usr/bin/env bash
# Installs what the project's commands need and this machine does not have.
#
#   scripts/setup.sh build           what cargo needs to build the workspace: a C compiler and linker, make, pkg-config
#   scripts/setup.sh guest           what guests need to be built and booted: QEMU, its tools, archivers; and systemd
#   scripts/setup.sh bench           what the benchmark needs: QEMU's storage daemon, to compare with, and losetup
#   scripts/setup.sh count           what counting instructions needs: valgrind
#   scripts/setup.sh fuzz            what the fuzzer's runtime is compiled by: a C++ compiler
#   scripts/setup.sh --check GROUP   installs nothing; fails, and says what is missing, when something is
#
# Silent, and done in a few milliseconds, when nothing is missing. Works as root or through sudo. The machine's package
# sources are never changed: where a package has to come from Debian's backports (a machine whose qemu-utils came from
# there cannot take the stable QEMU), a private list of sources is used for that one installation.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/private-apt.sh
. "$here/private-apt.sh"

# Command, or file, and the Debian package that has it.
build_needs=(cc=gcc ld=binutils /usr/include/stdlib.h=libc6-dev make=make pkg-config=pkg-config)
guest_needs=(qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils qemu-storage-daemon=qemu-utils
  /usr/lib/systemd/systemd=systemd unshare=util-linux cpio=cpio zstd=zstd lz4=lz4 xz=xz-utils cc=gcc
  /usr/include/stdlib.h=libc6-dev make=make readelf=binutils)
bench_needs=(qemu-storage-daemon=qemu-utils /usr/sbin/losetup=mount)
count_needs=(valgrind=valgrind)
fuzz_needs=("c++=g++")

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# Prints the needs of "$@" that are not met, one a line.
unmet() {
  local need
  for need in "$@"; do
    case ${need%%=*} in
      /*) [[ -e ${need%%=*} ]] || printf '%s\n' "$need" ;;
      *) command -v "${need%%=*}" >/dev/null || printf '%s\n' "$need" ;;
    esac
  done
}

# Runs "$@" as root.
as_root() {
  if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive ${APT_CONFIG:+APT_CONFIG="$APT_CONFIG"} apt-get "$@"; }

# Nothing more than what was asked for, never by removing something, and patient with another apt's lock.
careful=(-qq -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300)

# Could "$@" be installed, going by the package lists that are here?
installable() { apt-get -s "${careful[@]}" install "$@" >/dev/null 2>&1; }

# Installs "$@". An old list may name files that the mirror no longer has: then once more with fresh lists, when apt's
# `no` is final.
install() {
  local started=$SECONDS
  say "installing: $*"
  if ! try_install "$@"; then
    refresh && try_install "$@" || return 1
  fi
  say "done in $((SECONDS - started)) s"
}
try_install() { installable "$@" && apt "${careful[@]}" install "$@" >>"$log" 2>&1; }

# Fetches the package lists. Another apt may be fetching them, for which apt does not wait by itself.
refresh() {
  local try
  say "fetching the package lists"
  for try in {1..30}; do
    if apt -qq update >"$work/update" 2>&1; then return; fi
    grep -q 'Could not get lock' "$work/update" || [[ $try -lt 3 ]] || break
    sleep 3
  done
  cat "$work/update" >>"$log"
  return 1
}

# Installs "$@" from this release with its backports, leaving the machine's sources as they are.
install_from_backports() (
  say "this release's version does not fit what is installed: trying its backports"
  private_apt "$work/apt" backports >>"$log" 2>&1 || exit 1
  # shellcheck disable=SC1091
  release=$(. /etc/os-release && printf %s "$VERSION_CODENAME")
  apt "${careful[@]}" -t "$release-backports" install "$@" >>"$log" 2>&1
)

check_only=no
groups=()
for argument in "$@"; do
  case $argument in
    build | guest | bench | count | fuzz) groups+=("$argument") ;;
    --check) check_only=yes ;;
    *) die "unknown group '$argument': use build, guest, bench, count, fuzz, or several (and --check)" ;;
  esac
done
[[ ${#groups[@]} -gt 0 ]] || die "name a group: build, guest, bench, count, fuzz, or several"

needs=()
for group in "${groups[@]}"; do
  case $group in
    build) needs+=("${build_needs[@]}") ;;
    guest) needs+=("${guest_needs[@]}") ;;
    bench) needs+=("${bench_needs[@]}") ;;
    count) needs+=("${count_needs[@]}") ;;
    fuzz) needs+=("${fuzz_needs[@]}") ;;
  esac
done
mapfile -t missing < <(unmet "${needs[@]}")
if [[ " ${groups[*]} " == *' build '* ]] && ! command -v cargo >/dev/null; then
  die "there is no cargo: install a Rust toolchain first (rustup), this script does not"
fi
[[ ${#missing[@]} -gt 0 ]] || exit 0

commands=${missing[*]%%=*}
mapfile -t packages < <(printf '%s\n' "${missing[@]#*=}" | sort -u)
[[ $check_only == no ]] || die "missing: $commands"
command -v apt-get >/dev/null ||
  die "missing: $commands. This system has no apt-get: install them with its own package manager and start again"
[[ $EUID -eq 0 ]] || command -v sudo >/dev/null ||
  die "missing: $commands. Neither root nor sudo: as root, run: apt-get install ${packages[*]}"

work=$(mktemp -d)
log=$work/log
trap 'rm -rf "$work"' EXIT
say "missing: $commands"
# QEMU apart: it alone may have to come from elsewhere, and must not keep the rest from being installed.
mapfile -t qemu < <(printf '%s\n' "${packages[@]}" | grep '^qemu-' || true)
mapfile -t plain < <(printf '%s\n' "${packages[@]}" | grep -v '^qemu-' || true)
failed() {
  tail -n 20 "$log" >&2
  die "could not install: $*. apt's last lines are above"
}
[[ ${#plain[@]} -eq 0 ]] || install "${plain[@]}" || failed "${plain[@]}"
[[ ${#qemu[@]} -eq 0 ]] || install "${qemu[@]}" || install_from_backports "${qemu[@]}" || failed "${qemu[@]}"
hash -r
mapfile -t missing < <(unmet "${needs[@]}")
[[ ${#missing[@]} -eq 0 ]] || die "installed ${packages[*]}, and there is still no: ${missing[*]%%=*}"
