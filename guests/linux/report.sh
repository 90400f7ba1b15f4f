# What every job is written with: results, checks, disks. To be sourced, by busybox's shell.
#
# A job is a script in /jobs. It says what it found with `result`, and what it expected with `check`, and ends with
# `finish`, whose exit status follows from the checks.
failures=0

# result KEY VALUE...
result() {
	key=$1
	shift
	printf '%s=%s\n' "$key" "$*" >&3
}

# passed NAME; failed NAME WHY...
passed() {
	result "check.$1" ok
	echo "$sluice_job: $1: ok"
}
failed() {
	name=$1
	shift
	failures=$((failures + 1))
	result "check.$name" "failed: $*"
	echo "$sluice_job: $name: FAILED: $*"
}

# check NAME COMMAND...: passes when the command does; the last line it printed is the reason otherwise.
check() {
	name=$1
	shift
	if "$@" >/tmp/output 2>&1; then
		passed "$name"
	else
		status=$?
		failed "$name" "$* (status $status): $(tail -n 1 /tmp/output)"
		return 1
	fi
}

# check_fails NAME COMMAND...: passes when the command does not.
check_fails() {
	name=$1
	shift
	if "$@" >/tmp/output 2>&1; then
		failed "$name" "$* succeeded"
		return 1
	fi
	passed "$name"
}

# text NAME: standard input becomes a text of several lines.
text() {
	echo "@begin $1" >&3
	cat >&3
	echo "@end $1" >&3
}

# The job cannot go on: usage WHY...
usage() {
	result check.parameters "failed: $*"
	echo "$sluice_job: $*"
	exit 2
}

finish() {
	[ "$failures" = 0 ] && exit 0
	exit 1
}

# need_disk NAME: waits for the disk to appear.
need_disk() {
	tries=$((sluice_wait * 10))
	until [ -b "/dev/$1" ]; do
		if [ "$tries" = 0 ]; then
			result "check.disk.$1" "failed: did not appear within $sluice_wait s"
			exit 3
		fi
		tries=$((tries - 1))
		sleep 0.1
	done
}

# disk_bytes NAME; block_bytes NAME
disk_bytes() { echo $(($(cat "/sys/block/$1/size") * 512)); }
block_bytes() { cat "/sys/block/$1/queue/logical_block_size"; }

# mib_of NAME: the disk's size in MiB, rounded down.
mib_of() { echo $(($(disk_bytes "$1") >> 20)); }

# put FILE DISK OFFSET: writes a file whose length is a multiple of the disk's block at a byte offset that is too, with
# direct I/O and a flush. take DISK OFFSET BYTES: reads with direct I/O, to standard output. A transfer is one block
# size that divides everything: 64 KiB where it fits, else the disk's block.
put() {
	unit=$(unit_of "$2" "$3" "$(stat -c %s "$1")")
	dd if="$1" of="/dev/$2" bs="$unit" seek=$(($3 / unit)) oflag=direct conv=notrunc,fsync 2>&1
}
take() {
	unit=$(unit_of "$1" "$2" "$3")
	dd if="/dev/$1" bs="$unit" skip=$(($2 / unit)) count=$(($3 / unit)) iflag=direct 2>/tmp/dd.err || cat /tmp/dd.err >&2
}
unit_of() {
	if [ $((($2 | $3) % 65536)) = 0 ]; then echo 65536; else block_bytes "$1"; fi
}

# holds FILE DISK OFFSET: the disk has the file's bytes there. zeros DISK OFFSET BYTES: it has zeros there.
holds() { take "$2" "$3" "$(stat -c %s "$1")" | cmp - "$1"; }
zeros() {
	head -c "$3" /dev/zero >/tmp/zeros
	holds /tmp/zeros "$1" "$2"
}

# random_file PATH BYTES
random_file() { head -c "$2" /dev/urandom >"$1"; }

# attribute KEY FILE: the file's one line as a result, without a process of its own, as there are sixty of them. A
# serial number ends without a newline, and some attributes cannot be read.
attribute() {
	value=
	{ read -r value <"$2"; } 2>/dev/null
	result "$1" "$value"
}

# describe DISK: everything that the kernel knows about a disk, as results.
describe() {
	attribute "$1.size_sectors" "/sys/block/$1/size"
	attribute "$1.features" "/sys/block/$1/device/features"
	for name in ro serial cache_type; do
		attribute "$1.$name" "/sys/block/$1/$name"
	done
	set -- "$1" "/sys/block/$1/mq"/*
	result "$1.queues" "$(($# - 1))"
	for path in "/sys/block/$1/queue"/*; do
		[ -f "$path" ] && attribute "$1.queue.${path##*/}" "$path"
	done
}
