#!/usr/bin/env bash
# Runs the benchmarks and writes docs/benchmarks.md and its plots; make bench calls it. Let
# nothing else run on the machine: it takes half an hour on two cores without KVM.
#
#   scripts/bench.sh [OUTPUT]    the raw output; default dist/benchmarks.txt
set -euo pipefail
cd "$(dirname "$0")/.."

output=${1:-dist/benchmarks.txt}
mkdir -p "$(dirname "$output")"
accelerator='TCG (emulation)'
[ -w /dev/kvm ] && accelerator=KVM
{
	echo "commit: $(git describe --always --dirty)"
	echo "host: $(nproc) processors, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), $(. /etc/os-release && echo "$PRETTY_NAME")"
	echo "kernel: $(uname -r)"
	echo "libvirt: $(libvirtd --version | sed 's/.* //')"
	echo "qemu: $(qemu-system-x86_64 --version | sed -n '1s/.*version \([^ ]*\).*/\1/p')"
	echo "accelerator: $accelerator"
	echo "storage: $(findmnt -nro FSTYPE -T "${TMPDIR:-/tmp}")"
} >"$output"

# A missed goal is no reason to keep the others' results back.
status=0
go test -tags boot -run '^$' -bench . -benchtime 1x -timeout 90m ./test/e2e ./test/boot ./test/admin | tee -a "$output" || status=1
go run ./test/bench | tee -a "$output" || status=1
go run ./scripts/benchmarks . "$output"
echo "docs/benchmarks.md and docs/images/benchmark-*.svg are new; the output is in $output"
exit "$status"
