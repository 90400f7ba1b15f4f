#!/bin/sh
# Runs the bare-metal guest under QEMU on one or more vhost-user-blk sockets.
#
#   run.sh SOCKET... [-- WORD...]
#
# WORDs are the kernel command line (README.md, "What the host can expect"). The report goes to standard output;
# the exit status is 0 if every check passed. QUEUES, MEMORY (MiB), ACCEL, CPU and MACHINE in the environment
# override the defaults. The disks are overwritten.
set -eu

queues=${QUEUES:-1}
memory=${MEMORY:-64}
passed=33 # what the guest writes to isa-debug-exit, as QEMU's exit status

elf=$("$(dirname "$0")/build.sh")
disks=
count=0
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    disks="$disks -chardev socket,id=c$count,path=$1"
    disks="$disks -device vhost-user-blk-pci,chardev=c$count,num-queues=$queues"
    count=$((count + 1))
    shift
done
[ $count -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -eq 0 ] || shift

status=0
# shellcheck disable=SC2086 # $disks are words
qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -M "${MACHINE:-q35},memory-backend=mem" -accel "${ACCEL:-tcg,thread=multi}" -cpu "${CPU:-Nehalem}" \
    -m "$memory" -object "memory-backend-memfd,id=mem,size=${memory}M,share=on" \
    -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4 \
    $disks -kernel "$elf" -append "$*" </dev/null || status=$?
[ $status -eq $passed ]
