#!/usr/bin/env bash
# debian-root.sh makes the root directory of a Debian release from its packages, once, and
# prints its path. It needs root, or sudo.
#
#   scripts/debian-root.sh SUITE [PACKAGE...]          make it, unless it is there
#   scripts/debian-root.sh --path SUITE [PACKAGE...]   print the path only
#
# Without packages it has what building and testing need (deps.sh --list). The packages come
# from the mirror that this system's apt uses, if this is a Debian. The directory is named
# after this file, the suite and the packages: remove it to get newer ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

path_only=
if [[ ${1-} == --path ]]; then
	path_only=yes
	shift
fi
suite=${1:?usage: $0 [--path] SUITE [PACKAGE...]}
shift
packages=("$@")
if [[ ${#packages[@]} == 0 ]]; then
	# sudo: some tests look for it. virtiofsd: a package of its own since Debian 13.
	mapfile -t packages < <(./deps.sh --list)
	[[ $suite == bookworm ]] || packages+=(virtiofsd)
fi

# Not below ~/.cache, which CI packs and unpacks: the files have owners of their own.
cache=${DEBIAN_ROOTS:-/var/cache/gitlab-sardine-executor-tests}
key=$({ cat debian-root.sh && printf '%s\n' "$suite" "${packages[@]}"; } | sha256sum | cut -c1-16)
target=$cache/$suite-$key
if [[ $path_only || -e $target ]]; then
	echo "$target"
	exit
fi

as_root=()
[[ $(id -u) == 0 ]] || as_root=(sudo)
if ! command -v mmdebstrap >/dev/null; then
	echo "debian-root: mmdebstrap is missing; run: make deps" >&2
	exit 1
fi

# mirror is that of the system's own release.
mirror() {
	local uri release component origin
	while read -r uri release component origin; do
		if [[ $origin == Debian && $component == main && $release != *-* ]]; then
			echo "$uri"
			return
		fi
	done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Identifier: Packages' 2>/dev/null)
	echo http://deb.debian.org/debian
}

"${as_root[@]}" mkdir -p "$cache"
work=$("${as_root[@]}" mktemp -d "$cache/build.XXXXXX")
log=$(mktemp)
trap 'rm -f "$log"; "${as_root[@]}" rm -rf "$work"' EXIT
begin=$SECONDS
if ! "${as_root[@]}" mmdebstrap --mode=root --variant=minbase --format=directory \
	--include="$(IFS=,; echo "${packages[*]}")" \
	--aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
	--dpkgopt=force-unsafe-io \
	--essential-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"' \
	--customize-hook='rm "$1/usr/sbin/policy-rc.d"' \
	"$suite" "$work/root" "deb $(mirror) $suite main" >"$log" 2>&1; then
	echo "debian-root: cannot make $suite:" >&2
	tail -n 20 "$log" >&2
	exit 1
fi
# Complete or absent: two builds at once both end well.
"${as_root[@]}" mv -T "$work/root" "$target" 2>/dev/null || [[ -e $target ]]
echo "debian-root: $suite in $((SECONDS - begin)) s" >&2
echo "$target"
