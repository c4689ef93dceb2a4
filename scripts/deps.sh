#!/usr/bin/env bash
# deps.sh installs the Debian packages that are missing, and says which. Where
# none is, it asks dpkg once and is done.
#
#   scripts/deps.sh          what building, running, demo and tests need
#   scripts/deps.sh build    what building and running need
#   scripts/deps.sh --list   only print the first list
#   scripts/deps.sh site     what make site needs
#   scripts/deps.sh nightly  what the tests at night need besides
set -euo pipefail

# What building and running the program needs, next to Go.
build=(
	gcc libc6-dev make git ca-certificates pkg-config libvirt-dev
	libvirt-daemon-system libvirt-clients # libvirtd, its settings and users; virsh
	qemu-system-x86 qemu-utils            # the machines; qemu-img
	passt                                 # the user network
	dnsmasq-base iptables iproute2        # libvirt's networks
)

# What demo, tests and benchmarks need besides.
test=(
	docker-registry skopeo umoci         # a registry, and the peers
	mtools syslinux cpio lz4             # the test guest
	mmdebstrap e2fsprogs fdisk           # the full guest
	openssh-client                       # the peer of the benchmark
	genisoimage swtpm swtpm-tools        # CD-ROMs and TPMs of machines
	ovmf systemd-boot-efi                # UEFI, and a boot loader for it
	btrfs-progs xfsprogs                 # file systems whose files share blocks
	apache2-utils                        # htpasswd, for a registry with a login
)

case ${1-} in
'') wanted=("${build[@]}" "${test[@]}") ;;
build) wanted=("${build[@]}") ;;
site) wanted=(make git mkdocs) ;;
nightly) wanted=(qemu-system-arm qemu-efi-aarch64 ignition) ;; # guests for arm64; Ignition itself
--list)
	printf '%s\n' "${build[@]}" "${test[@]}"
	exit
	;;
*)
	echo "usage: $0 [build | site | nightly | --list]" >&2
	exit 64
	;;
esac

if ! command -v dpkg-query >/dev/null; then
	echo "deps: this installs Debian packages; here, install what these hold: ${wanted[*]}" >&2
	exit 1
fi

# dpkg-query fails if it does not know one of the packages, which is no error here.
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
	[[ $'\n'$installed$'\n' == *$'\n'"$package installed"$'\n'* ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
if [[ $(id -u) != 0 ]]; then
	if ! command -v sudo >/dev/null; then
		echo "deps: as root, run: apt-get install --no-install-recommends ${missing[*]}" >&2
		exit 1
	fi
	as_root=(sudo)
fi

# The registry is wanted as a program, not as a service on port 5000.
# /usr/sbin/policy-rc.d is Debian's way to say so; one that is there stays.
policy=/usr/sbin/policy-rc.d
without_registry_service() {
	if [[ -e $policy || " ${missing[*]} " != *' docker-registry '* ]]; then
		"$@"
		return
	fi
	trap '"${as_root[@]}" rm -f "$policy"' EXIT
	printf '#!/bin/sh\n[ "$1" != docker-registry ] || exit 101\n' |
		"${as_root[@]}" tee "$policy" >/dev/null
	"${as_root[@]}" chmod 755 "$policy"
	"$@"
	if command -v systemctl >/dev/null; then
		"${as_root[@]}" systemctl disable --quiet docker-registry 2>/dev/null || true
	fi
}

apt() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"
}

echo "deps: installing ${missing[*]}"
apt update
without_registry_service apt install --no-install-recommends "${missing[@]}" >/dev/null
