#!/bin/sh
# Builds an older driver and tests that today's finds what it left: machines, images, caches,
# snapshots. make test-upgrade calls it.
#
#   scripts/test-upgrade.sh [REVISION]
#
# The default is the last tag before this commit; as long as there is none, the state before
# the packages were divided, which is the oldest that docs/versions.md promises.
set -eu
cd "$(dirname "$0")/.."

first=e404926
revision=${1:-$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null || echo "$first")}
git rev-parse --quiet --verify "$revision^{commit}" >/dev/null || {
	echo "test-upgrade: $revision is no commit of this clone; a shallow clone needs: git fetch --unshallow --tags" >&2
	exit 1
}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
echo "test-upgrade: from $(git log -1 --format='%h, %cs' "$revision")"
mkdir "$dir/source"
git archive "$revision" | tar -x -C "$dir/source"
(cd "$dir/source" && CGO_ENABLED=1 go build -buildvcs=false -o "$dir/previous" ./cmd/gitlab-sardine-executor)
chmod 755 "$dir" "$dir/previous"
go test -count=1 -vet=off -timeout 60m -tags boot,upgrade ./test/e2e -run '^TestUpgrade' -v -previous "$dir/previous"
