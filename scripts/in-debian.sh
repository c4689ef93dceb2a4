#!/usr/bin/env bash
# in-debian.sh runs a command in this checkout on another Debian release: with its libvirt,
# QEMU and passt, and with this machine's kernel, network and Go.
#
#   [DEBIAN_PACKAGES='…'] scripts/in-debian.sh SUITE COMMAND [ARGUMENT...]
#
# The release has what building and testing need, or else DEBIAN_PACKAGES.
# The root directory (debian-root.sh) stays as it is: what the command writes is in memory,
# and gone afterwards. Mounts, processes and IPC are its own; they end with the command.
# Only the caches of Go, and the test guests, are this machine's. It needs root, or sudo.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$(dirname "$here")

if [[ ${1-} != --inside ]]; then
	suite=${1:?usage: $0 SUITE COMMAND [ARGUMENT...]}
	shift
	# shellcheck disable=SC2086 # a list
	root=$("$here/debian-root.sh" "$suite" ${DEBIAN_PACKAGES-})
	guests=${XDG_CACHE_HOME:-$HOME/.cache}/gitlab-sardine-executor
	mkdir -p "$guests" "$(go env GOCACHE)" "$(go env GOMODCACHE)"
	settings=(
		"IN_ROOT=$root" "IN_GUESTS=$guests" "IN_GO=$(go env GOROOT)"
		"GOCACHE=$(go env GOCACHE)" "GOMODCACHE=$(go env GOMODCACHE)"
		"GOPROXY=$(go env GOPROXY)" "GONOSUMDB=$(go env GONOSUMDB)" "GOSUMDB=$(go env GOSUMDB)"
		"GOFLAGS=$(go env GOFLAGS) -buildvcs=false"
		"TERM=${TERM-dumb}" "PATH=$PATH:/usr/sbin:/sbin"
	)
	for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
		[[ ! ${!name-} ]] || settings+=("$name=${!name}")
	done
	as_root=()
	[[ $(id -u) == 0 ]] || as_root=(sudo)
	exec "${as_root[@]}" env -i "${settings[@]}" \
		unshare --mount --pid --ipc --uts --fork --kill-child --propagation private \
		"${BASH_SOURCE[0]}" --inside "$@"
fi
shift

# The rest runs in the new namespaces, and ends with the command in the new root.
new=/mnt
mount -t tmpfs -o mode=0755 in-debian "$new"
mkdir "$new/upper" "$new/work" "$new/root"
mount -t overlay -o "lowerdir=$IN_ROOT,upperdir=$new/upper,workdir=$new/work" in-debian "$new/root"
new=$new/root

# share PATH [OPTION]: this machine's directory, at the same place.
share() {
	mkdir -p "$new$1"
	mount --bind "$1" "$new$1"
	[[ ! ${2-} ]] || mount -o "remount,bind,$2" "$new$1"
}
mount -t tmpfs -o mode=1777 tmp "$new/tmp"
mount -t tmpfs -o mode=0755 run "$new/run"
mkdir -p "$new/src" "$new/root/.cache/gitlab-sardine-executor" "$new/run/lock"
mount --bind "$source" "$new/src"
mount --bind "$IN_GUESTS" "$new/root/.cache/gitlab-sardine-executor"
share "$IN_GO" ro
share "$GOCACHE"
share "$GOMODCACHE"
mount --rbind /dev "$new/dev"
mount --rbind /sys "$new/sys"
mount -t proc proc "$new/proc"
for file in /etc/resolv.conf /etc/hosts; do
	rm -f "$new$file"
	cat "$file" >"$new$file" || true
done
if [[ -d /etc/ssl/certs ]]; then # the certificates of a proxy
	mount --bind /etc/ssl/certs "$new/etc/ssl/certs"
fi

# A real change of the root, not a chroot, which libvirt would leave by setns(2).
mkdir "$new/old"
cd "$new"
pivot_root . old
umount --lazy /old
rmdir /old
cd /src
export HOME=/root LC_ALL=C.UTF-8 TMPDIR=/tmp PATH="$IN_GO/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
exec "$@"
