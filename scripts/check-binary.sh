#!/usr/bin/env bash
# check-binary.sh builds the program in two directories, the second time without a
# build cache, and fails if the binaries differ, are larger than 20 MB or need C
# libraries other than libvirt's, or if --help of any command differs from that of a plain go build.
set -euo pipefail
cd "$(dirname "$0")/.."

max_bytes=20000000

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

# build DIR: build the tracked files in a copy at DIR.
build() {
	mkdir -p "$1"
	git ls-files -z --cached --others --exclude-standard | tar -c --null --ignore-failed-read -T - 2>/dev/null | tar -x -C "$1"
	make -s -C "$1" build VERSION=check COMMIT=check
}

build "$work/one"
GOCACHE=$work/cache build "$work/another/directory"

one=$work/one/bin/gitlab-sardine-executor
two=$work/another/directory/bin/gitlab-sardine-executor
if ! cmp "$one" "$two"; then
	echo "check-binary: the same sources gave two binaries" >&2
	exit 1
fi
size=$(stat -c %s "$one")
if ((size > max_bytes)); then
	echo "check-binary: the binary has $size bytes, more than $max_bytes" >&2
	exit 1
fi
# helps PROGRAM [COMMAND...]: the help of the program, and of all commands below.
helps() {
	local command text
	text=$("$@" --help)
	printf '== %s\n%s\n' "${*:2}" "$text"
	for command in $(sed -n '/^COMMANDS:/,/^$/s/^ *  \([a-z][a-z-]*\).*/\1/p' <<<"$text"); do
		[[ $command == help ]] || helps "$@" "$command"
	done
}
go build -buildvcs=false -tags urfave_cli_no_docs -ldflags '-X main.version=check -X main.commit=check' -o "$work/gitlab-sardine-executor" ./cmd/gitlab-sardine-executor
helps "$work/gitlab-sardine-executor" >"$work/plain"
helps "$one" >"$work/slim"
if ! diff -u "$work/plain" "$work/slim" >&2 || (($(grep -c ^== "$work/plain") < 20)); then
	echo "check-binary: --help is not that of a plain build (scripts/slim)" >&2
	exit 1
fi
go run ./scripts/licences -tags urfave_cli_no_docs,grpcnotrace ./cmd/gitlab-sardine-executor "$one" >/dev/null
echo "check-binary: reproducible, $size bytes, sha256 $(sha256sum "$one" | cut -d' ' -f1)"
