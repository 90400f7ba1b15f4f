#!/bin/sh
# Builds the bare-metal guest and prints the path of the ELF file.
#
# Contract: rebuilds only if a source, this script or the compiler changed; the same sources and
# compiler give the same bytes; safe to run twice at once. Needs gcc and GNU ld for x86-64.
set -eu
export LC_ALL=C # the order of *.c

sources=$(cd "$(dirname "$0")" && pwd)
out=$sources/../.cache/bare
compiler=${CC:-gcc}

# -mgeneral-regs-only: no SSE, AVX or x87, which an emulating /dev/kvm cannot run.
# -fcf-protection=none: nor endbr64. -fno-tree-loop-distribute-patterns: memcpy must not call itself.
flags="-std=gnu11 -Os -march=x86-64 -mgeneral-regs-only -ffreestanding -fno-pic -mno-red-zone
    -fcf-protection=none -fno-stack-protector -fno-asynchronous-unwind-tables
    -fno-tree-loop-distribute-patterns
    -Wall -Wextra -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wshadow -Werror"
link="-nostdlib -static -s -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments"

cd "$sources"
stamp=$(cat ./*.c ./*.h ./*.S bare.ld build.sh | sha256sum)$($compiler --version)
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ ! -f "$out/bare.elf" ] || [ "$stamp" != "$(cat "$out/stamp" 2>/dev/null)" ]; then
    work=$(mktemp -d "$out/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2086 # the flags are words
    $compiler $flags $link -T bare.ld -o "$work/bare.elf" ./*.S ./*.c
    printf '%s' "$stamp" > "$work/stamp"
    mv "$work/bare.elf" "$work/stamp" "$out/"
fi
echo "$out/bare.elf"
