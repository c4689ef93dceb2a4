#!/usr/bin/env bash
# build-guest.sh makes the test guest: a qcow2 disk of some 20 MB that boots to
# SSH (vagrant / vagrant) in seconds, also where the processor is emulated. It is
# what demo, tests and benchmarks boot.
#
#   scripts/build-guest.sh          build unless it is there; print its path
#   scripts/build-guest.sh --path   print the path where it is or would be
#
# It is put together from Debian packages without root and without loop devices:
# a FAT disk with syslinux, Debian's cloud kernel and an initramfs that is the
# whole system. What it is made of stands in guest/. The cache directory is named
# after these files, so that a change of any of them makes another guest.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$here/guest
disk_mib=48

# inputs_hash names the guest: the content, path and mode of every file that
# makes it.
inputs_hash() {
	(
		cd "$here"
		find build-guest.sh guest -type f | LC_ALL=C sort | while read -r file; do
			[[ -x $file ]] && echo "x $file" || echo "- $file"
			cat "$file"
		done
	) | sha256sum | cut -c1-16
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/gitlab-sardine-executor/guest
target=$cache/$(inputs_hash)/guest.qcow2

case ${1-} in
--path)
	echo "$target"
	exit
	;;
'') ;;
*)
	echo "usage: $0 [--path]" >&2
	exit 64
	;;
esac

if [[ -e $target ]]; then
	echo "$target"
	exit
fi

for tool in apt-get dpkg mcopy mformat syslinux cpio lz4 qemu-img; do
	if ! PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null; then
		echo "build-guest: $tool is missing; run: make deps" >&2
		exit 1
	fi
done

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# step TEXT COMMAND...: run a step, its output kept for the case that it fails,
# and say how long it took.
step() {
	local text=$1 begin=$EPOCHREALTIME
	shift
	if ! "$@" >"$work/log" 2>&1; then
		echo "build-guest: cannot $text:" >&2
		tail -n 20 "$work/log" >&2
		exit 1
	fi
	local end=$EPOCHREALTIME
	printf 'build-guest: %-32s %6d ms\n' "$text" $(((${end/[.,]/} - ${begin/[.,]/}) / 1000)) >&2
}

# lines FILE: a list without its comments.
lines() { grep -v -e '^#' -e '^$' "$source/$1"; }

# download gets the packages into debs/, by the package lists of the system, or,
# where these are missing, too old or of another architecture, by lists of our
# own, which need no root either.
download() {
	mkdir -p "$work/debs"
	fetch_debs && return
	mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
	apt_options+=(
		-o "Dir::State=$work/apt/state"
		-o Dir::State::status=/dev/null
		-o "Dir::Cache=$work/apt/cache"
	)
	apt-get "${apt_options[@]}" update && fetch_debs
}

# The download would be done by the user _apt, who may not write here.
apt_options=(-q -o APT::Sandbox::User=root -o APT::Architecture=amd64)

fetch_debs() {
	local packages=() name
	while read -r name; do
		case $name in
		linux-image-*) name=$(kernel_of "$name") && [[ $name ]] || return 1 ;;
		esac
		packages+=("$name")
	done < <(lines packages)
	(cd "$work/debs" && apt-get "${apt_options[@]}" download "${packages[@]}")
}

# kernel_of META: the package of the kernel itself.
kernel_of() {
	apt-cache "${apt_options[@]}" depends "$1" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

unpack() {
	mkdir -p "$work/packages"
	local deb
	for deb in "$work"/debs/*.deb; do
		# Of the kernel's 100 MB only a few modules are wanted: tar picks them.
		case $deb in
		*/linux-image-*)
			dpkg --fsys-tarfile "$deb" | tar -x -C "$work/packages" --wildcards \
				'./boot/vmlinuz-*' $(lines modules | grep ko$ | sed 's,^,./lib/modules/*/kernel/,')
			;;
		*) dpkg -x "$deb" "$work/packages" ;;
		esac
	done
}

# tree lays the guest's root directory.
tree() {
	local root=$work/root from to
	mkdir -p "$root"/{usr/{bin,sbin,lib/modules},dev,proc,sys,run,root,home/vagrant,builds,cache,etc/dropbear,var/log}
	mkdir -m 1777 "$root/tmp"
	ln -s ../run "$root/var/run"
	ln -s usr/bin usr/lib usr/lib64 "$root"
	ln -s usr/bin "$root/sbin"
	cp -r "$source/root/." "$root"
	lines files | while read -r from to; do
		mkdir -p "$root/$(dirname "$to")"
		cp -L "$work/packages/$from" "$root/$to"
	done
	"$root/usr/bin/busybox" --list | while read -r to; do
		[[ -e $root/usr/bin/$to ]] || ln -s busybox "$root/usr/bin/$to"
	done
	lines modules >"$root/etc/modules.paths"
	sed 's,.*/,,' "$root/etc/modules.paths" >"$root/etc/modules"
	grep ko$ "$root/etc/modules.paths" | while read -r from; do
		cp "$work"/packages/lib/modules/*/kernel/"$from" "$root/usr/lib/modules/"
	done
	rm "$root/etc/modules.paths"
	chmod 600 "$root/etc/shadow"
	# su is one of busybox's programs; for the others it gives root's rights up.
	chmod 4755 "$root/usr/bin/busybox"
}

initramfs() {
	(cd "$work/root" && find . -print0 | LC_ALL=C sort -z |
		cpio --null --quiet -o -H newc -R 0:0) >"$work/initrd.cpio"
	# The kernel knows the legacy format of lz4 only.
	lz4 -l -9 -q -f "$work/initrd.cpio" "$work/initrd"
}

disk() {
	local raw=$work/guest.raw PATH=$PATH:/sbin:/usr/sbin
	truncate -s "${disk_mib}M" "$raw"
	mformat -i "$raw" -v GUEST -T $((disk_mib * 2048)) -h 16 -s 63 ::
	mcopy -i "$raw" "$work"/packages/boot/vmlinuz-* ::vmlinuz
	mcopy -i "$raw" "$work/initrd" ::initrd
	mcopy -i "$raw" "$source/syslinux.cfg" ::syslinux.cfg
	syslinux --install "$raw"
	qemu-img convert -f raw -O qcow2 "$raw" "$work/guest.qcow2"
}

step 'download the packages' download
step 'unpack them' unpack
step 'lay the root directory' tree
step 'pack the initramfs' initramfs
step 'make the disk' disk

# Complete or absent: two builds at once both end well.
chmod 444 "$work/guest.qcow2"
mkdir -p "$(dirname "$target")"
mv -f "$work/guest.qcow2" "$target"
echo "build-guest: $(du -h "$target" | cut -f1)" >&2
echo "$target"
