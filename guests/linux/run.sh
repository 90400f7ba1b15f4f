#!/usr/bin/env bash
# Boots the Linux guest on vhost-user-blk sockets and runs one job, for people: README.md has the contract and the jobs.
#
#   guests/linux/run.sh [--machine q35|microvm] [--cpus 2] [--queues CPUS] [--memory 512] [--kvm] [--verbose]
#       SOCKET [SOCKET...] -- JOB [KEY=VALUE...]
#
#   guests/linux/run.sh /tmp/disk.sock -- smoke
#   guests/linux/run.sh --machine microvm /tmp/disk.sock -- fio fio=random,mixed fio_size=32m
#
# The console goes to standard error, the results to standard output. The exit status is the job's exit code, and 99 when
# the guest ended without one.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
root=$(readlink -f "$here/../..")
cache=$root/guests/.cache/linux

die() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 98
}

machine=q35 cpus=2 queues='' memory=512 kvm=no verbose=no sockets=()
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --machine | --cpus | --queues | --memory)
      [[ $# -ge 2 ]] || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --kvm) kvm=yes ;;
    --verbose) verbose=yes ;;
    -*) die "unknown option $1" ;;
    *) sockets+=("$1") ;;
  esac
  shift
done
[[ $# -ge 2 && ${#sockets[@]} -gt 0 ]] || die "usage: run.sh [OPTION...] SOCKET [SOCKET...] -- JOB [KEY=VALUE...]"
job=$2
shift 2

"$here/build.sh" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
append="$(cat "$here/cmdline") sluice.job=$job"
for word in "$@"; do append+=" sluice.$word"; done

if [[ $kvm == yes ]]; then
  accel=(-accel kvm -cpu host)
else
  accel=(-accel 'tcg,thread=multi' -cpu 'Nehalem,-spec-ctrl')
  # A guest on a busy host does not find out its clock's frequency (microvm) or takes long to (q35): it is told.
  khz=$(awk '/^cpu MHz/ { printf "%d", $4 * 1000; exit }' /proc/cpuinfo)
  append+=" tsc_early_khz=$khz lpj=$((khz * 4))"
fi
case $machine in
  q35)
    board=(-M 'q35,memory-backend=mem')
    results=(-serial "file:$work/results")
    device=vhost-user-blk-pci
    ;;
  microvm)
    board=(-M 'microvm,memory-backend=mem,acpi=on,isa-serial=on,x-option-roms=off,rtc=on' -bios qboot.rom
      -global virtio-mmio.force-legacy=false)
    results=(-chardev "file,id=results,path=$work/results" -device 'isa-serial,index=1,chardev=results')
    device=vhost-user-blk
    ;;
  *) die "--machine is q35 or microvm, not '$machine'" ;;
esac
disks=()
for number in "${!sockets[@]}"; do
  disks+=(-chardev "socket,id=c$number,path=${sockets[number]}"
    -device "$device,chardev=c$number,num-queues=${queues:-$cpus}")
done

# Where only one CPU is possible QEMU translates the guest's memory barriers to plain instructions: now and then it would wait
# for ever for a disk that is served by another process.
[[ $cpus != 1 ]] || cpus=1,maxcpus=2
command=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
  "${board[@]}" "${accel[@]}" -smp "$cpus" -m "$memory"
  -object "memory-backend-memfd,id=mem,size=${memory}M,share=on"
  -serial mon:stdio "${results[@]}" -device 'isa-debug-exit,iobase=0xf4,iosize=4'
  "${disks[@]}" -kernel "$cache/vmlinux" -initrd "$cache/initramfs.cpio.zst" -append "$append")
[[ $verbose == no ]] || printf '%q ' "${command[@]}" >&2
status=0
if [[ $job == shell ]]; then
  "${command[@]}" || status=$?
else
  "${command[@]}" </dev/null >&2 || status=$?
fi
[[ ! -e $work/results ]] || cat "$work/results"
code=$(tail -n 1 "$work/results" 2>/dev/null | sed -n 's/^exit=\([0-9]*\)$/\1/p')
[[ -n $code ]] || {
  printf 'run.sh: the guest ended without a result (QEMU exited with %s)\n' "$status" >&2
  exit 99
}
exit "$code"
