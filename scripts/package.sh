#!/usr/bin/env bash
# package.sh builds the packages for the Debian release that it runs on, into dist/:
#
#   scripts/in-debian.sh SUITE scripts/package.sh [VERSION [deb | rpm]...]
#
# make package calls it for each release: the program is linked with that release's libvirt.
# VERSION is that of the package; it begins with a digit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.1
out=dist
version=${1:?usage: $0 VERSION [deb | rpm]...}
shift
formats=("$@")
[[ ${#formats[@]} -gt 0 ]] || formats=(deb)

work=$(mktemp -d)
mkdir -p bin "$out"
# Root writes into the checkout of another user (in-debian.sh).
trap 'rm -rf "$work"; [[ $EUID != 0 ]] || chown -R --reference=. bin "$out"' EXIT
. /etc/os-release
make --no-print-directory build VERSION="$version" COMMIT="${COMMIT-}" BINARY="$work/gitlab-sardine-executor"

# newest PREFIX: the newest version of a library's symbols that the program uses.
newest() {
	objdump -T "$work/gitlab-sardine-executor" | grep -o "${1}_[0-9][0-9.]*" | sed "s/^${1}_//" | sort -V | tail -n 1
}

# The describing files come from a build with the generator of the command-line library.
describe=(go run -tags packaging -ldflags "-X main.version=$version" ./cmd/gitlab-sardine-executor)
time=${SOURCE_DATE_EPOCH:-$(stat -c %Y CHANGELOG.md)}
"${describe[@]}" man-page | gzip -9n >"$work/gitlab-sardine-executor.8.gz"
"${describe[@]}" fish-completion >"$work/fish"
gzip -9nc CHANGELOG.md >"$work/changelog.gz"
maintainer='gitlab-sardine-executor maintainers <maintainers@example.com>'
gzip -9n >"$work/changelog.Debian.gz" <<END
gitlab-sardine-executor ($version+deb$VERSION_ID) $VERSION_CODENAME; urgency=medium

  * Built from the sources of $version; see changelog.gz.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$time")
END

# nfpm gives the files this time.
export PACKAGE_FILES=$work PACKAGE_MAINTAINER=$maintainer SOURCE_DATE_EPOCH=$time
PACKAGE_LIBC="libc6 (>= $(newest GLIBC))"
PACKAGE_LIBVIRT="libvirt0 (>= $(newest LIBVIRT))"
export PACKAGE_LIBC PACKAGE_LIBVIRT
PACKAGE_ARCH=$(go env GOARCH)
export PACKAGE_ARCH
for format in "${formats[@]}"; do
	case $format in
	deb) export PACKAGE_VERSION=$version+deb$VERSION_ID ;;
	rpm) export PACKAGE_VERSION=$version ;;
	esac
	go run "$nfpm" package --config packaging/nfpm.yaml --packager "$format" --target "$out/"
done
