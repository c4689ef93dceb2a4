# Runs in a guest: mounts the machine's cache. Arguments: "disk" or "share", its label,
# the directory, and "yes" if the cache is new. Lines "say …" and "warn …" go to the
# job's log.
#
# Exit status 0: the cache is mounted, or the guest cannot mount caches. Any other: the
# disk must not be used again.
#
# Other jobs of the project wrote the content of the disk. It is not trusted: the job
# must be able to continue whatever it is.

main() {
	mode=$1 label=$2 dir=$3 fresh=$4
	PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
	root true 2>/dev/null || unable "the guest's user is not root, and sudo wants a password"
	root mkdir -p "$dir" || unable "cannot create $dir"
	"mount_$mode"
	own
}

# unable WHY: continue without the cache.
unable() {
	echo "warn the cache of the project is not mounted in this guest: $*. The content of ${dir} will be lost with the machine"
	exit 0
}

# root COMMAND...: run it as root, without this script on its stdin.
root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi </dev/null
}

# Other jobs must not provide setuid programs or devices.
safe=nosuid,nodev

mount_share() {
	root mount -t virtiofs -o $safe "$label" "$dir" 2>/dev/null ||
		unable "mount -t virtiofs fails (Linux has it since 5.4)"
}

mount_disk() {
	device=$(device) || unable "no disk has the serial number $label (does the kernel have virtio_blk?)"
	if [ "$fresh" = yes ]; then
		format
	elif ! verify || ! mount_any || ! writable; then
		echo "warn the cache disk of the project has no usable file system: it is formatted"
		format
	elif full=$(fullness) && [ "$full" -ge 95 ]; then
		echo "say The cache disk of the project is $full % full: it is formatted (its size is the setting cache_size)"
		format
	fi
}

# device: print the path of the disk, which may appear late, with its driver.
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

# verify: repair an ext file system after the sudden end of an earlier machine; fail if
# errors are left (4). Other file systems recover when they are mounted.
verify() {
	command -v e2fsck >/dev/null || return 0
	root e2fsck -p "$device" >/dev/null 2>&1
	[ $(($? & 4)) = 0 ]
}

# mount_any: mount a file system of the types that format makes, without probing.
mount_any() {
	for type in ext4 xfs btrfs ext3 ext2; do
		root mount -t $type -o $safe,noatime "$device" "$dir" 2>/dev/null && return 0
	done
	return 1
}

# writable: a full or broken disk is of no use.
writable() {
	probe=$(root mktemp "$dir/.sardine.XXXXXX" 2>/dev/null) && root rm -f "$probe"
}

# fullness: per cent.
fullness() {
	set -- $(df -P "$dir" 2>/dev/null | tail -n 1)
	[ $# -ge 6 ] && echo "${5%\%}"
}

# format: make an empty file system and mount it.
format() {
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
	echo "warn $failed cannot make a file system on the cache disk of the project: the job continues without it"
	exit 1
}
failed=

# own: give the cache to the user of this guest: its ID may differ from the last one.
own() {
	[ "$(stat -c %u "$dir" 2>/dev/null)" = "$(id -u)" ] ||
		root chown -R -h "$(id -u):$(id -g)" "$dir" 2>/dev/null
	root chmod u+rwx "$dir" 2>/dev/null
	:
}

main "$@"
