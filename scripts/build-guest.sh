#!/usr/bin/env bash
# build-guest.sh makes the test guest: a qcow2 disk of some 20 MB that boots to
# SSH (vagrant / vagrant) in seconds, also where the processor is emulated. It is
# what demo, tests and benchmarks boot.
#
#   scripts/build-guest.sh [arm64]          build unless it is there; print its path
#   scripts/build-guest.sh --path [arm64]   print the path where it is or would be
#
# It is put together from Debian packages without root and without loop devices:
# a FAT disk with syslinux (arm64: a GPT with an EFI system partition and
# systemd-boot), Debian's cloud kernel and an initramfs that is the whole system. What it is made of stands in guest/. The cache directory is named
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

show=
if [[ ${1-} == --path ]]; then
	show=yes
	shift
fi
case ${1-} in
'' | amd64) arch=amd64 name=guest console=ttyS0 ;;
arm64) arch=arm64 name=guest-arm64 console=ttyAMA0 ;;
*)
	echo "usage: $0 [--path] [amd64|arm64]" >&2
	exit 64
	;;
esac
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gitlab-sardine-executor/guest
target=$cache/$(inputs_hash)/$name.qcow2
if [[ $show ]]; then
	echo "$target"
	exit
fi

if [[ -e $target ]]; then
	echo "$target"
	exit
fi

tools=(apt-get dpkg mcopy mformat cpio lz4 qemu-img)
[[ $arch == amd64 ]] && tools+=(syslinux) || tools+=(sfdisk mmd)
for tool in "${tools[@]}"; do
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

# lines FILE: a list without its comments, for the architecture.
lines() {
	grep -v -e '^#' -e '^$' "$source/$1" | if [[ $arch == arm64 ]]; then
		# The power button of arm64 is a GPIO, and the dynamic linker lies elsewhere.
		sed -e 's/amd64/arm64/; s/x86_64-linux-gnu/aarch64-linux-gnu/g' -e '/acpi.button/d' \
			-e 's,ld-linux-x86-64.so.2,ld-linux-aarch64.so.1,g; s,usr/lib64/,usr/lib/,'
		[[ $1 != packages ]] || echo systemd-boot-efi
	else
		cat
	fi
}

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
apt_options=(-q -o APT::Sandbox::User=root -o APT::Architecture=$arch)

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
	# If its programs cannot run here, init asks it.
	if [[ $arch == "$(dpkg --print-architecture)" ]]; then
		"$root/usr/bin/busybox" --list | while read -r to; do
			[[ -e $root/usr/bin/$to ]] || ln -s busybox "$root/usr/bin/$to"
		done
	fi
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
	if [[ $arch == amd64 ]]; then
		bios_disk
	else
		uefi_disk
	fi
	qemu-img convert -f raw -O qcow2 "$raw" "$work/guest.qcow2"
}

bios_disk() {
	truncate -s "${disk_mib}M" "$raw"
	mformat -i "$raw" -v GUEST -T $((disk_mib * 2048)) -h 16 -s 63 ::
	mcopy -i "$raw" "$work"/packages/boot/vmlinuz-* ::vmlinuz
	mcopy -i "$raw" "$work/initrd" ::initrd
	mcopy -i "$raw" "$source/syslinux.cfg" ::syslinux.cfg
	syslinux --install "$raw"
}

uefi_disk() {
	local system=$raw@@1M options
	options=$(sed -n 's/^ *APPEND //p' "$source/syslinux.cfg")
	truncate -s 100M "$raw"
	sfdisk --quiet "$raw" <<<$'label: gpt\nstart=2048,size=96M,type=C12A7328-F81F-11D2-BA4B-00C04FD430C8'
	mformat -i "$system" -v GUEST -T $((96 * 2048)) -h 16 -s 63 ::
	mmd -i "$system" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
	mcopy -i "$system" "$work"/packages/usr/lib/systemd/boot/efi/systemd-bootaa64.efi ::/EFI/BOOT/BOOTAA64.EFI
	mcopy -i "$system" "$work"/packages/boot/vmlinuz-* ::vmlinuz
	mcopy -i "$system" "$work/initrd" ::initrd
	printf 'title guest\nlinux /vmlinuz\ninitrd /initrd\noptions %s\n' "${options/ttyS0/$console}" >"$work/guest.conf"
	mcopy -i "$system" "$work/guest.conf" ::/loader/entries/guest.conf
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
