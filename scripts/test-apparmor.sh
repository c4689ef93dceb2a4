#!/usr/bin/env bash
# test-apparmor.sh boots a Debian 13 whose kernel enforces AppArmor, has it run jobs, and writes
# what was printed into docs/apparmor.md. It fails if a job fails, or if AppArmor does not confine
# QEMU and passt.
#
# The Debian is a virtual machine, and the machines of the jobs are within it: without KVM, both
# are emulated, and a job takes minutes. It needs root, or sudo (debian-root.sh). make
# test-apparmor builds what it needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=gitlab-sardine-executor
page=docs/apparmor.md
memory_mib=2048
disk_gib=6
# How long the whole may take.
limit=${LIMIT:-60m}

if [[ $(id -u) != 0 ]]; then
	exec sudo --preserve-env=LIMIT,DEBIAN_ROOTS "PATH=$PATH" "XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}" "${BASH_SOURCE[0]}" "$@"
fi
packages=(
	linux-image-cloud-amd64 initramfs-tools systemd-sysv dbus udev procps iproute2
	apparmor apparmor-utils libvirt-daemon-system libvirt-clients dnsmasq-base
	qemu-system-x86 qemu-utils passt ca-certificates
)
root=$(scripts/debian-root.sh trixie "${packages[@]}")
guest=$(scripts/build-guest.sh --path)
for file in "bin/$program" "$guest"; do
	if [[ ! -e $file ]]; then
		echo "test-apparmor: $file is missing; run: make test-apparmor" >&2
		exit 1
	fi
done

work=$(mktemp -d /var/tmp/apparmor.XXXXXX)
trap 'rm -rf "$work"' EXIT

# What runs in the Debian. It has a serial port for what it prints.
cat >"$work/walk" <<'END'
#!/bin/bash
export HOME=/root LC_ALL=C.UTF-8 TERM=dumb
cd /root
failed=0
# shown COMMAND prints a command with what it prints.
shown() {
	local status=0
	echo '```console'
	echo "# $*"
	timeout 1200 bash -c "$*" </dev/null 2>&1 | sed -e 's/\x1b\[[0-9;]*[A-Za-z]//g' -e 's/\r$//'
	status=${PIPESTATUS[0]}
	[[ $status == 0 ]] || { echo "(exit status $status)"; failed=1; }
	echo '```'
	echo
}
text() {
	cat
	echo
}
# confined NETWORK USER: the labels of what a job's machine consists of, while it runs.
confined() {
	local connect=qemu:///system
	[[ $2 == root ]] || connect=qemu:///session
	text <<<"### \`network = \"$1\"\`, as $2"
	printf '[defaults]\nconnect = "%s"\nnetwork = "%s"\ntimeout = "15m"\nmemory = "512M"\nguest_builds_dir = "/builds"\nguest_cache_dir = "/cache"\n' \
		"$connect" "$1" >/etc/gitlab-sardine-executor/config.toml
	rm -f job.log
	runuser --login "$2" -c "gitlab-sardine-executor try oci:/srv/guest:latest -- sh -c 'uname -r; sleep 20'" >job.log 2>&1 </dev/null &
	local job=$! what=qemu-system
	[[ $1 != user ]] || what=passt
	for _ in {1..600}; do
		ps -eo comm | grep -q "^$what" && ps -eo comm | grep -q ^qemu-system && break
		kill -0 $job 2>/dev/null || break
		sleep 1
	done
	shown "ps -eo label:48,user:14,comm | grep -E 'qemu-system|passt'"
	wait $job || failed=1
	shown "cat job.log"
}
mkdir -p /etc/gitlab-sardine-executor
: >/etc/gitlab-sardine-executor/config.toml
until systemctl is-active --quiet apparmor libvirtd.socket; do sleep 1; done
text <<TEXT
# AppArmor on Debian 13

<!-- Made by make test-apparmor, from a real run; do not edit. -->

In a Debian 13 whose kernel enforces AppArmor, with the profiles of its packages, root runs a job on each network, and an ordinary user
runs one. A run of \`scripts/test-apparmor.sh\` printed everything below. That Debian is itself an emulated machine: the times say nothing.
TEXT
shown "uname -r; cat /sys/module/apparmor/parameters/enabled; aa-status --profiled; aa-status --enforced"
shown "dpkg-query --show apparmor libvirt-daemon-system qemu-system-x86 passt"
text <<<'## Jobs'
virsh --quiet net-start default 2>&1 | grep -v '^$' || true
useradd --create-home gitlab-runner
confined user root
confined default root
confined user gitlab-runner
text <<TEXT
## What AppArmor denied
TEXT
shown "journalctl --dmesg --no-hostname --output=cat --grep 'apparmor=\"DENIED\"' || echo nothing"
text <<TEXT
## What a denial looks like

passt may not create a socket below \`/var/lib\`:
TEXT
before=$failed
shown "passt --foreground --socket /var/lib/passt.socket"
shown "journalctl --dmesg --no-hostname --output=cat --grep 'apparmor=\"DENIED\"' | sed 's/.*apparmor=/apparmor=/'"
failed=$before
echo "failed=$failed"
END
chmod 755 "$work/walk"
cat >"$work/walk.service" <<'END'
[Unit]
Description=Jobs under AppArmor
After=multi-user.target libvirtd.socket apparmor.service
[Service]
Type=oneshot
ExecStart=/root/walk
ExecStopPost=/usr/bin/systemctl --no-block poweroff
StandardOutput=file:/dev/ttyS1
StandardError=journal+console
TimeoutStartSec=infinity
[Install]
WantedBy=default.target
END

echo "test-apparmor: make the disk" >&2
cp -a "$root" "$work/root"
install -m 755 "bin/$program" "$work/root/usr/bin/"
install -m 755 "$work/walk" "$work/root/root/"
"bin/$program" export --disk "$guest" --vm-config scripts/guest/vmconfig.json "oci:$work/root/srv/guest:latest" >&2
install -m 644 "$work/walk.service" "$work/root/etc/systemd/system/"
mkdir -p "$work/root/etc/systemd/system/default.target.wants"
ln -s ../walk.service "$work/root/etc/systemd/system/default.target.wants/"
ln -sf /dev/null "$work/root/etc/systemd/system/systemd-networkd-wait-online.service"
echo debian13 >"$work/root/etc/hostname"
rm -f "$work/root/etc/resolv.conf" "$work/root/etc/fstab"
echo nameserver 10.0.2.3 >"$work/root/etc/resolv.conf"
printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' >"$work/root/etc/systemd/network/80-dhcp.network"
ln -s /usr/lib/systemd/system/systemd-networkd.service "$work/root/etc/systemd/system/multi-user.target.wants/"
cp "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$work/initrd"
PATH=$PATH:/sbin:/usr/sbin mke2fs -q -t ext4 -d "$work/root" "$work/disk.raw" "${disk_gib}G"
rm -rf "$work/root"

# One CPU: a kernel that patches its code for several dies of "Oops: int3" in QEMU 7.2 without KVM.
echo "test-apparmor: boot it" >&2
accel=tcg
[[ ! -w /dev/kvm ]] || accel=kvm
timeout --kill-after=10 "$limit" qemu-system-x86_64 -machine q35 -accel "$accel" -cpu max -m "$memory_mib" -display none -no-reboot \
	-kernel "$work/vmlinuz" -initrd "$work/initrd" \
	-append 'root=/dev/vda rw console=ttyS0 mitigations=off rng_core.default_quality=1000 security=apparmor apparmor=1 systemd.show_status=1 panic=-1' \
	-drive "file=$work/disk.raw,format=raw,if=virtio,cache=unsafe" \
	-nic user,model=virtio-net-pci -device virtio-rng-pci \
	-serial "file:$work/console" -serial "file:$work/printed" || true
if ! grep -q '^failed=' "$work/printed"; then
	tail -n 40 "$work/console" >&2
	echo "test-apparmor: the machine did not get to its end" >&2
	exit 1
fi
printf '%s\n' "$(tr -d '\r' <"$work/printed" | sed '/^failed=/d')" >"$work/page"
cat "$work/page" >&2
# labels COMMAND: the profiles that processes of that name had. libvirt confines no QEMU of an
# ordinary user.
labels() { awk -v name="$1" '$1 != "#" && $NF ~ "^" name && !(name == "qemu-system" && /gitlab-runner/) { print }' "$work/page"; }
for name in qemu-system passt; do
	if ! labels "$name" | grep -q '(enforce)' || labels "$name" | grep -v '(enforce)' | grep -q .; then
		echo "test-apparmor: AppArmor does not confine $name" >&2
		exit 1
	fi
done
if ! grep -q '^apparmor="DENIED".*profile="passt"' "$work/page"; then
	echo "test-apparmor: the kernel's log does not show what AppArmor denies" >&2
	exit 1
fi
if ! grep -q '^failed=0' "$work/printed"; then
	echo "test-apparmor: a job has failed" >&2
	exit 1
fi
cp "$work/page" "$page"
echo "$page"
