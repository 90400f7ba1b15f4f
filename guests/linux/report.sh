# What every job is written with: results, checks, disks. To be sourced, by busybox's shell.
#
# A job is a script in /jobs. It says what it found with `result`, and what it expected with `check`, and ends with
# `finish`, whose exit status follows from the checks.
failures=0

# result KEY VALUE...
result() {
	local key=$1
	shift
	printf '%s=%s\n' "$key" "$*" >&3
}

# passed NAME; failed NAME WHY...
passed() {
	result "check.$1" ok
	echo "$sluice_job: $1: ok"
}
failed() {
	local name=$1
	shift
	failures=$((failures + 1))
	result "check.$name" "failed: $*"
	echo "$sluice_job: $name: FAILED: $*"
}

# check NAME COMMAND...: passes when the command does; the last line it printed is the reason otherwise.
check() {
	local name=$1 status
	shift
	"$@" >/tmp/output 2>&1
	status=$?
	if [ "$status" != 0 ]; then
		failed "$name" "$* (status $status): $(tail -n 1 /tmp/output)"
		return 1
	fi
	passed "$name"
}

# check_fails NAME COMMAND...: passes when the command does not. A command that cannot run at all proves nothing.
check_fails() {
	local name=$1 status
	shift
	"$@" >/tmp/output 2>&1
	status=$?
	case $status in
	0) failed "$name" "$* succeeded" ;;
	126 | 127) failed "$name" "$*: $(tail -n 1 /tmp/output)" ;;
	*) passed "$name" ;;
	esac
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
	local tries=$((sluice_wait * 10))
	until [ -b "/dev/$1" ]; do
		if [ "$tries" = 0 ]; then
			result "check.disk.$1" "failed: did not appear within $sluice_wait s"
			exit 3
		fi
		local tries=$((tries - 1))
		sleep 0.1
	done
}

# disk_bytes NAME; block_bytes NAME: the size of the disk, and of its logical blocks.
disk_bytes() { echo $(($(cat "/sys/block/$1/size") * 512)); }
block_bytes() { cat "/sys/block/$1/queue/logical_block_size"; }

# put FILE DISK OFFSET: writes a file whose length is a multiple of the disk's block at a byte offset that is too, with
# direct I/O and a flush. take DISK OFFSET BYTES: reads with direct I/O, to standard output.
put() {
	local unit
	unit=$(unit_of "$2" "$3" "$(stat -c %s "$1")")
	dd if="$1" of="/dev/$2" bs="$unit" seek=$(($3 / unit)) oflag=direct conv=notrunc,fsync 2>&1
}
take() {
	local unit
	unit=$(unit_of "$1" "$2" "$3")
	dd if="/dev/$1" bs="$unit" skip=$(($2 / unit)) count=$(($3 / unit)) iflag=direct 2>/tmp/dd.err || cat /tmp/dd.err >&2
}
# The transfer size for an offset and a length: the largest that divides both.
unit_of() {
	local unit
	for unit in 1048576 262144 65536; do
		if [ $((($2 | $3) % unit)) = 0 ]; then
			echo "$unit"
			return
		fi
	done
	block_bytes "$1"
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
	local value=
	{ read -r value <"$2"; } 2>/dev/null
	result "$1" "$value"
}

# describe DISK: everything that the kernel knows about a disk, as results.
describe() {
	local name path
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
