# A table out of fio's results: awk -f demo-table.awk JOBFILE RESULTS
#
# The job file gives block size and depth of each job (a section's own, else those of [global]). The results are lines
# of the Linux guest, fio.JOB.error=N and fio.JOB.read|write.KEY=VALUE (guests/linux/README.md). Exits with 1 if there
# is nothing to show.

function value(text) { sub(/^[^=]*=/, "", text); return text }
function of_job(job, key) { return ((job, key) in option) ? option[job, key] : option["global", key] }
function rule(   i, line) { for (i = 0; i < 78; i++) line = line "-"; print line }

FNR == 1 { file++ }

file == 1 && /^\[/ { section = $0; gsub(/[][]/, "", section) }
file == 1 && /^(bs|iodepth)=/ { split($0, part, "="); option[section, part[1]] = part[2] }

file == 2 && /^fio\.[^.]+\.error=/ {
  split($0, part, ".")
  jobs[++count] = part[2]
  error[part[2]] = value($0)
}
file == 2 && /^fio\.[^.]+\.(read|write)\./ {
  split($0, part, /[.=]/)
  result[part[2], part[3], part[4]] = value($0)
}

END {
  if (count == 0) { print "no results: the guest did not get as far as fio"; exit 1 }
  row = "%-12s %-6s %6s %6s %10s %9s %9s %9s  %s\n"
  printf row, "job", "", "block", "depth", "MiB/s", "IOPS", "p50 us", "p99 us", "verify"
  rule()
  for (i = 1; i <= count; i++) {
    job = jobs[i]
    for (j = 1; j <= 2; j++) {
      direction = j == 1 ? "write" : "read"
      if (!((job, direction, "bw_kib") in result)) continue
      verdict = error[job] != 0 ? "FAILED, error " error[job] : direction == "read" ? "ok" : "-"
      printf row, job, direction, of_job(job, "bs"), of_job(job, "iodepth"), \
        sprintf("%.1f", result[job, direction, "bw_kib"] / 1024), result[job, direction, "iops"], \
        result[job, direction, "lat_p50_us"], result[job, direction, "lat_p99_us"], verdict
    }
    if (error[job] != 0 && !((job, "read", "bw_kib") in result) && !((job, "write", "bw_kib") in result))
      printf row, job, "", of_job(job, "bs"), of_job(job, "iodepth"), "", "", "", "", "FAILED, error " error[job]
  }
  rule()
}
