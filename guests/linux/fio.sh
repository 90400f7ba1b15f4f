# Runs fio and turns its output into results. To be sourced after report.sh.
export DEV="/dev/$sluice_dev" DEV2="/dev/$sluice_dev2" SIZE="${sluice_fio_size:-64m}" LOOPS="${sluice_fio_loops:-1}"

# run_fio NAME: the job file /fio/NAME.fio. A block that does not verify makes fio fail, and so the check. Progress goes
# to the console.
run_fio() {
	local status
	echo "fio: $1"
	fio --output=/tmp/fio.out --output-format=json,terse --eta=always --eta-newline=5s "/fio/$1.fio" 2>/tmp/fio.err
	status=$?
	cat /tmp/fio.err
	if [ "$status" = 0 ]; then
		passed "fio.$1"
	else
		failed "fio.$1" "status $status: $(cat /tmp/fio.err /tmp/fio.out | grep -m 1 -E 'verify|^fio:')"
	fi
	grep '^3;' /tmp/fio.out | summarise >&3
	sed -n '/^{/,/^}/p' /tmp/fio.out | text "fio.$1.json"
}

# fio's terse lines (version 3) to results. The two directions have the same 41 fields, from field 6 and field 47 on:
# KiB, KiB/s, IOPS, ms, then latencies of submission and completion, 20 percentiles, and total latencies.
summarise() {
	awk -F ';' '
		function percentile(first, wanted, i, pair) {
			for (i = first + 12; i < first + 32; i++) {
				split($i, pair, "=")
				if (pair[1] + 0 == wanted) return pair[2]
			}
		}
		function direction(name, first) {
			if ($first == 0) return
			prefix = "fio." $3 "." name "."
			print prefix "kib=" $first
			print prefix "bw_kib=" $(first + 1)
			print prefix "iops=" $(first + 2)
			print prefix "runtime_ms=" $(first + 3)
			print prefix "lat_mean_us=" $(first + 34)
			print prefix "lat_p50_us=" percentile(first, 50)
			print prefix "lat_p99_us=" percentile(first, 99)
		}
		{
			print "fio." $3 ".error=" $5
			direction("read", 6)
			direction("write", 47)
		}'
}
