# Runs in a guest, in a login shell: mounts the disk with programs of the host, and links
# them to a directory that is first on the PATH of GitLab's scripts. Arguments: the serial
# number of the disk, the directory below the home of the user, and "host" to link
# gitlab-runner even if the guest has its own.
#
# Answers "linked"; "own" if the guest has a gitlab-runner, which is left alone; or
# "unusable" and the reason. Under emulation each process costs 10 ms: there are few.

main() {
	serial=$1 bin=$HOME/$2 prefer=$3
	own=$(command -v gitlab-runner)
	PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
	at=/run/gitlab-sardine-executor
	[ -d /run ] || at=/var/run/gitlab-sardine-executor
	[ -e "$at/gitlab-runner" ] || mount_tools
	mkdir -p "$bin" || unusable "cannot create $bin"
	if [ -e "$at/step-runner" ] && ! command -v step-runner >/dev/null; then
		ln -sf "$at/step-runner" "$bin/step-runner"
	fi
	case $own in
	'' | "$bin"/*) ;;
	*) [ "$prefer" = host ] || answer own ;;
	esac
	ln -sf "$at/gitlab-runner" "$bin/gitlab-runner" || unusable "cannot write to $bin"
	answer linked
}

answer() {
	echo "gitlab-sardine-executor: $*"
	exit 0
}

unusable() { answer "unusable $*"; }

mount_tools() {
	device=$(device) || unusable "it has no disk with the serial number $serial"
	mount='mkdir -p "$2" && mount -t iso9660 -o ro,nosuid,nodev "$1" "$2"'
	if [ "$(id -u)" = 0 ]; then
		why=$(sh -c "$mount" sh "$device" "$at" 2>&1)
	else
		why=$(sudo -n sh -c "$mount" sh "$device" "$at" 2>&1)
	fi </dev/null
	[ -e "$at/gitlab-runner" ] || unusable "it cannot mount $device (needs root, or sudo without a password): $why"
}

# device: print the path of the disk, which may appear late, with its driver. A disk that
# is not on virtio has no such file: then the label of the file system finds it.
device() {
	tries=0
	while [ -d /sys/block ] && [ $tries -le 8 ]; do
		for file in /sys/block/*/serial; do
			found=
			[ -r "$file" ] && read -r found <"$file"
			if [ "$found" = "$serial" ]; then
				disk=${file%/serial}
				echo "/dev/${disk##*/}"
				return 0
			fi
		done
		if [ -e /dev/disk/by-label/SARDINE_TOOLS ]; then
			echo /dev/disk/by-label/SARDINE_TOOLS
			return 0
		fi
		tries=$((tries + 1))
		sleep 0.25 2>/dev/null || sleep 1
	done
	return 1
}

main "$@"
