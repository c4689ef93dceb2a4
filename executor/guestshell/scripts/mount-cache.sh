# Runs in a guest: mounts the cache that this machine has. Arguments: "disk" or
# "share", the label by which to find it, the directory, and "yes" if nobody has
# ever written to it. Lines "say …" and "warn …" are for the log of the job.
#
# Exit status 0: mounted, or this guest cannot and the cache is not to blame.
# Another: nobody should use this disk again.
#
# What is on a disk was written by other jobs of the project, and is not trusted
# more than that: whatever it holds, this job has to be able to go on.

main() {
	mode=$1 label=$2 dir=$3 fresh=$4
	PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
	root true 2>/dev/null || unable "the guest's user is not root, and sudo wants a password"
	root mkdir -p "$dir" || unable "$dir cannot be made"
	"mount_$mode"
	own
}

# unable WHY: this job goes on without.
unable() {
	echo "warn the cache of the project is not mounted in this guest, since $*: what this job leaves in ${dir} is gone with the machine"
	exit 0
}

# root COMMAND...: run it as root. Its input is not this script.
root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi </dev/null
}

# Neither setuid programs nor devices are wanted from other jobs.
safe=nosuid,nodev

mount_share() {
	root mount -t virtiofs -o $safe "$label" "$dir" 2>/dev/null ||
		unable "mount -t virtiofs fails (Linux has it since 5.4)"
}

mount_disk() {
	device=$(device) || unable "there is no disk with the serial number $label (does its kernel have virtio_blk?)"
	if [ "$fresh" = yes ]; then
		anew
	elif ! sound || ! mount_any || ! writable; then
		echo "warn the cache disk of the project has no file system that can be used: it is made anew, and empty"
		anew
	elif full=$(fullness) && [ "$full" -ge 95 ]; then
		echo "say The cache disk of the project is $full % full: it is emptied (the setting cache_size says how large it is)"
		anew
	fi
}

# device: the disk, which a driver that is loaded late may bring after a while.
device() {
	tries=0
	while [ -d /sys/block ] && [ $tries -le 20 ]; do
		for serial in /sys/block/*/serial; do
			if [ "$(cat "$serial" 2>/dev/null)" = "$label" ]; then
				disk=${serial%/serial}
				echo "/dev/${disk##*/}"
				return 0
			fi
		done
		tries=$((tries + 1))
		sleep 0.25 2>/dev/null || sleep 1
	done
	return 1
}

# sound: repair what the sudden end of an earlier machine left, if that is an ext
# file system; it is not if errors are left (4). Others repair themselves when they
# are mounted.
sound() {
	command -v e2fsck >/dev/null || return 0
	root e2fsck -p "$device" >/dev/null 2>&1
	[ $(($? & 4)) = 0 ]
}

# mount_any: mount one of those that anew makes. By name: nothing is probed.
mount_any() {
	for type in ext4 xfs btrfs ext3 ext2; do
		root mount -t $type -o $safe,noatime "$device" "$dir" 2>/dev/null && return 0
	done
	return 1
}

# writable: also the file system of an exhausted disk is of no use.
writable() {
	probe=$(root mktemp "$dir/.sardine.XXXXXX" 2>/dev/null) && root rm -f "$probe"
}

# fullness: per cent.
fullness() {
	set -- $(df -P "$dir" 2>/dev/null | tail -n 1)
	[ $# -ge 6 ] && echo "${5%\%}"
}

anew() {
	root umount "$dir" 2>/dev/null
	for make in 'mkfs.ext4 -q -F -m 0' 'mkfs.xfs -q -f' 'mkfs.btrfs -q -f' 'mkfs.ext3 -q -F -m 0' 'mkfs.ext2 -q -F -m 0' 'mke2fs -F -m 0'; do
		command -v "${make%% *}" >/dev/null || continue
		if root $make "$device" >/dev/null 2>&1 && mount_any && writable; then
			root rmdir "$dir/lost+found" 2>/dev/null
			return 0
		fi
		root umount "$dir" 2>/dev/null
		failed=${make%% *}
	done
	[ "$failed" ] || unable "it has none of mkfs.ext4, mkfs.xfs, mkfs.btrfs, mke2fs"
	echo "warn $failed cannot make a file system on the cache disk of the project: this job goes on without it"
	exit 1
}
failed=

# own gives the cache to the user of this guest, who may have another number than
# that of the last.
own() {
	[ "$(stat -c %u "$dir" 2>/dev/null)" = "$(id -u)" ] ||
		root chown -R -h "$(id -u):$(id -g)" "$dir" 2>/dev/null
	root chmod u+rwx "$dir" 2>/dev/null
	:
}

main "$@"
