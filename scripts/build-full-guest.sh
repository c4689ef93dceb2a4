#!/usr/bin/env bash
# build-full-guest.sh makes the full test guest: a Debian as people run it in
# clouds, with systemd, cloud-init, OpenSSH and the guest agent. It has no user who
# could log in: the driver must bring its own. A minute of work and a minute of
# emulated boot: one test uses it.
#
#   scripts/build-full-guest.sh [SUITE]          build unless it is there; print its path
#   scripts/build-full-guest.sh --path [SUITE]   print the path where it is or would be
#
# SUITE is bookworm, or trixie: with an OpenSSH that punishes refused logins.
# mmdebstrap installs it, as root or in a user namespace; a disk with a FAT
# partition for syslinux and an ext4 one for the system is put together without
# loop devices. The cache directory is named after this file.
set -euo pipefail

path_only=
if [[ ${1-} == --path ]]; then
	path_only=yes
	shift
fi
suite=${1:-bookworm}
case $#$suite in
0bookworm | 1bookworm | 1trixie) ;;
*)
	echo "usage: $0 [--path] [bookworm|trixie]" >&2
	exit 64
	;;
esac
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gitlab-sardine-executor/full-guest
target=$cache/$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-16)/$suite/full-guest.qcow2
boot_mib=64
root_mib=1400
packages=(
	linux-image-cloud-amd64 initramfs-tools systemd-sysv dbus udev
	cloud-init openssh-server qemu-guest-agent sudo
	ca-certificates git iproute2 curl
)

if [[ $path_only || -e $target ]]; then
	echo "$target"
	exit
fi

PATH=$PATH:/sbin:/usr/sbin
for tool in mmdebstrap mke2fs sfdisk mformat mcopy syslinux qemu-img; do
	if ! command -v "$tool" >/dev/null; then
		echo "build-full-guest: $tool is missing (Debian: mmdebstrap e2fsprogs fdisk mtools syslinux qemu-utils)" >&2
		exit 1
	fi
done

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'as_owner rm -rf "$work/root"; rm -rf "$work"' EXIT

# as_owner COMMAND...: with the right to give files to the users of the guest.
as_owner() {
	if [[ $(id -u) == 0 ]]; then
		"$@"
	else
		unshare --map-root-user --map-auto -- "$@"
	fi
}

step() {
	local text=$1 begin=$EPOCHREALTIME
	shift
	if ! "$@" >"$work/log" 2>&1; then
		echo "build-full-guest: cannot $text:" >&2
		tail -n 20 "$work/log" >&2
		exit 1
	fi
	local end=$EPOCHREALTIME
	printf 'build-full-guest: %-32s %6d ms\n' "$text" $(((${end/[.,]/} - ${begin/[.,]/}) / 1000)) >&2
}

# sources of the suite: the machine's own, where there are some.
sources() {
	local file
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
		if [[ -f $file ]] && grep -q "$suite" "$file"; then
			echo "$file"
			return
		fi
	done
	echo "deb $(mirror) $suite main"
}

# mirror is that of the machine's own release, if this is a Debian.
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

# An initramfs with no more than the disk's drivers, for a machine that is
# emulated; and nothing that waits for what the test host does not have. There are
# no locales, so cloud-init must not set one.
configure='
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools"
printf "MODULES=list\nCOMPRESS=lz4\n" >"$1/etc/initramfs-tools/conf.d/guest"
printf "virtio_pci\nvirtio_blk\next4\n" >"$1/etc/initramfs-tools/modules"
'
finish='
chroot "$1" systemctl enable systemd-networkd
chroot "$1" systemctl mask systemd-networkd-wait-online apt-daily.timer apt-daily-upgrade.timer man-db.timer
rm -f "$1"/etc/ssh/ssh_host_*
printf "datasource_list: [NoCloud, None]\nlocale: false\n" >"$1/etc/cloud/cloud.cfg.d/90-guest.cfg"
echo "PARTLABEL=unused /unused none noauto 0 0" >"$1/etc/fstab"
echo guest >"$1/etc/hostname"
printf "[Match]\nName=en*\n[Network]\nDHCP=yes\n" >"$1/etc/systemd/network/80-dhcp.network"
: >"$1/etc/machine-id"
'

install() {
	local from
	from=$(sources)
	mmdebstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" \
		--aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--essential-hook="$configure" --customize-hook="$finish" \
		"$suite" "$work/root.tar" "$from"
}

filesystem() {
	mkdir "$work/root"
	as_owner tar -x -C "$work/root" -f "$work/root.tar" --numeric-owner --xattrs
	as_owner mke2fs -q -t ext4 -L root -d "$work/root" "$work/root.ext4" "${root_mib}M"
}

disk() {
	local raw=$work/disk.raw offset=$((1024 * 1024))
	truncate -s $((1 + boot_mib + root_mib + 1))M "$raw"
	printf 'label: dos\nstart=1MiB, size=%dMiB, type=c, bootable\nstart=%dMiB, size=%dMiB, type=83\n' \
		"$boot_mib" $((1 + boot_mib)) "$root_mib" | sfdisk -q "$raw"
	dd if=/usr/lib/SYSLINUX/mbr.bin of="$raw" conv=notrunc bs=440 count=1 status=none
	local fat=$raw@@$offset
	mformat -i "$fat" -v BOOT -T $((boot_mib * 2048)) -h 64 -s 32 -H 2048 ::
	tar -x -C "$work" -f "$work/root.tar" --wildcards './boot/vmlinuz-*' './boot/initrd.img-*'
	mcopy -i "$fat" "$work"/boot/vmlinuz-* ::vmlinuz
	mcopy -i "$fat" "$work"/boot/initrd.img-* ::initrd
	cat >"$work/syslinux.cfg" <<-END
		DEFAULT guest
		PROMPT 0
		TIMEOUT 0
		LABEL guest
		  KERNEL vmlinuz
		  INITRD initrd
		  APPEND root=/dev/vda2 rw console=ttyS0 mitigations=off rng_core.default_quality=1000 systemd.show_status=1
	END
	mcopy -i "$fat" "$work/syslinux.cfg" ::syslinux.cfg
	syslinux --install --offset "$offset" "$raw"
	dd if="$work/root.ext4" of="$raw" conv=notrunc,sparse bs=1M seek=$((1 + boot_mib)) status=none
	qemu-img convert -f raw -O qcow2 "$raw" "$work/full-guest.qcow2"
}

step 'install Debian' install
step 'make the file system' filesystem
step 'make the disk' disk

# Complete or absent: two builds at once both end well.
chmod 444 "$work/full-guest.qcow2"
mkdir -p "$(dirname "$target")"
mv -f "$work/full-guest.qcow2" "$target"
echo "build-full-guest: $(du -h "$target" | cut -f1)" >&2
echo "$target"
