#!/usr/bin/env bash
# test-apparmor.sh boots a Debian 13 with its own kernel, whose AppArmor enforces the profiles
# of libvirt and passt, installs the package in it, and runs jobs: as root on a libvirt
# network and on the user network, and as an ordinary user. What it prints is the
# transcript in docs/debian13.md.
#
#   scripts/test-apparmor.sh PACKAGE.deb
#
# Machine and guests are emulated, one in the other: half an hour on two processors. It
# needs root, or sudo.
set -euo pipefail
package=$(realpath "${1:?usage: $0 PACKAGE.deb}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
minutes=${MINUTES:-90}

as_root=()
[[ $(id -u) == 0 ]] || as_root=(sudo)
root=$(scripts/debian-root.sh trixie linux-image-cloud-amd64 initramfs-tools apparmor apparmor-utils systemd-sysv dbus udev \
	iproute2 libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils passt dnsmasq-base iptables ca-certificates)
work=$("${as_root[@]}" mktemp -d /var/tmp/apparmor.XXXXXX)
trap '"${as_root[@]}" rm -rf "$work"' EXIT
"${as_root[@]}" chmod 755 "$work"

inside() {
	cat <<'END'
#!/bin/bash
# Runs in the machine, and powers it off.
exec >/dev/ttyS1 2>&1
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
say() { printf '\n$ %s\n' "$*"; }
# A job by the package's program: user, network, name.
job() {
	local user=$1 network=$2 home
	home=$(getent passwd "$user" | cut -d: -f6)
	mkdir -p /tmp/job-$user-$network
	printf '[defaults]\naccel = "tcg"\ntimeout = "40m"\nnetwork = "%s"\n' "$network" >/tmp/job-$user-$network/config.toml
	cp -r /srv/guest /tmp/job-$user-$network/
	chown -R "$user": /tmp/job-$user-$network
	say "gitlab-sardine-executor try oci:guest -- uname -a   # as $user, network = \"$network\""
	runuser -u "$user" -- env HOME="$home" XDG_RUNTIME_DIR=/run/user/$(id -u "$user") \
		gitlab-sardine-executor --config /tmp/job-$user-$network/config.toml try oci:/tmp/job-$user-$network/guest:latest -- uname -a
	echo "(exit status $?)"
}
dpkg --install /srv/package.deb || true
say cat /etc/debian_version; cat /etc/debian_version
say uname -r; uname -r
say dpkg-query -W libvirt-daemon-system qemu-system-x86 passt apparmor
dpkg-query -W libvirt-daemon-system qemu-system-x86 passt apparmor
useradd --create-home alice
loginctl enable-linger alice
systemctl start libvirtd
virsh --quiet net-start default
say aa-status --enabled; aa-status --enabled && echo enforcing
aa-status | grep -E '^ +(libvirtd|passt|virt-aa-helper|/usr/bin/passt|usr.sbin)' | sort -u
job root default
job root user
job alice user
say 'journalctl --dmesg --grep DENIED'
journalctl --no-pager --quiet --dmesg --output cat --grep DENIED || echo '(none)'
systemctl --no-block poweroff
END
}

# The root directory stays as it is: the file system gets additions in a copy.
echo "test-apparmor: making the disk" >&2
"${as_root[@]}" cp -a "$root" "$work/root"
"${as_root[@]}" cp "$package" "$work/root/srv/package.deb"
image=$(mktemp -d)
bin/gitlab-sardine-executor export --disk "$(scripts/build-guest.sh --path)" --vm-config scripts/guest/vmconfig.json "oci:$image/guest:latest" >&2
"${as_root[@]}" cp -r "$image/guest" "$work/root/srv/guest"
rm -rf "$image"
inside | "${as_root[@]}" tee "$work/root/srv/inside.sh" >/dev/null
"${as_root[@]}" chmod 755 "$work/root/srv/inside.sh"
"${as_root[@]}" tee "$work/root/etc/systemd/system/inside.service" >/dev/null <<'END'
[Unit]
After=network-online.target libvirtd.service apparmor.service
Wants=network-online.target
[Service]
Type=oneshot
ExecStart=/srv/inside.sh
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
END
"${as_root[@]}" tee "$work/root/etc/systemd/network/80-dhcp.network" >/dev/null <<<$'[Match]\nName=en*\n[Network]\nDHCP=yes'
"${as_root[@]}" chroot "$work/root" systemctl --quiet enable inside systemd-networkd
"${as_root[@]}" rm -f "$work/root/etc/resolv.conf"
"${as_root[@]}" mke2fs -q -t ext4 -L root -d "$work/root" "$work/disk" 6G
kernel=$(echo "$work"/root/boot/vmlinuz-*) initrd=$(echo "$work"/root/boot/initrd.img-*)

echo "test-apparmor: booting ($minutes minutes at most)" >&2
"${as_root[@]}" timeout "${minutes}m" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,-svm -smp 2 -m 3G -nodefaults -display none -no-reboot \
	-kernel "$kernel" -initrd "$initrd" -append 'root=LABEL=root rw console=ttyS0 quiet systemd.show_status=0' \
	-drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" -nic user,model=virtio,restrict=on \
	-serial "file:$work/console" -serial "file:$work/transcript" || {
	tail -n 30 "$work/console" >&2
	tail -n 30 "$work/transcript" >&2
	exit 1
}
tr -d '\r' <"$work/transcript"
[[ $(grep -c '^(exit status 0)$' "$work/transcript") == 3 ]]
