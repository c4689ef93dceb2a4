# Removes from a guest what must differ between the machines of an image, and what a build
# leaves in it. Runs as root at the end of a build. $1: the public key of the build, or nothing.
#
# Sources: systemd, "Safely Building Images" (https://systemd.io/BUILDING_IMAGES/);
# cloud-init clean(1); virt-sysprep(1), which lists what others remove.
key=$1
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# within DIR TEST...: remove what find finds below a directory, on its file system.
within() {
	[ -d "$1" ] || return 0
	dir=$1
	shift
	find "$dir" -xdev -mindepth 1 "$@" -delete 2>/dev/null
	return 0
}

# cloud-init: the next boot is that of another instance.
if command -v cloud-init >/dev/null 2>&1; then
	cloud-init clean --logs --configs network >/dev/null 2>&1 ||
		cloud-init clean --logs >/dev/null 2>&1 || rm -rf /var/lib/cloud/*
fi

# Identities: machine ID, host keys, secrets of the host.
if [ -e /etc/machine-id ]; then
	: >/etc/machine-id
fi
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_* /etc/dropbear/dropbear_*_host_key
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/urandom/random-seed /var/lib/seedrng/seed.*
rm -f /boot/loader/random-seed /boot/efi/loader/random-seed /efi/loader/random-seed
rm -f /etc/hostid /etc/nvme/hostid /etc/nvme/hostnqn

# Host keys must be made at the next boot. Fedora, Arch, openSUSE and Alpine do that, Debian
# and Ubuntu leave it to cloud-init, which does not run in a machine without a seed.
if [ -d /run/systemd/system ] && [ -e /etc/ssh/sshd_config ] && command -v ssh-keygen >/dev/null 2>&1; then
	makes=
	for unit in sshd-keygen.target sshd-keygen@.service sshd-keygen.service sshdgenkeys.service sardine-ssh-host-keys.service; do
		for dir in /etc/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
			[ ! -e "$dir/$unit" ] || makes=$unit
		done
	done
	grep -qs 'sshd-gen-keys-start' /usr/lib/systemd/system/sshd.service && makes=sshd.service
	if [ -z "$makes" ]; then
		wants=/etc/systemd/system/multi-user.target.wants
		mkdir -p "$wants" && cat >/etc/systemd/system/sardine-ssh-host-keys.service <<-EOF && ln -sf ../sardine-ssh-host-keys.service "$wants/" || makes=failed
			[Unit]
			Description=Create the SSH host keys of this machine
			After=cloud-init.service
			Before=ssh.service sshd.service
			ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

			[Service]
			Type=oneshot
			RemainAfterExit=yes
			ExecStart=$(command -v ssh-keygen) -A

			[Install]
			WantedBy=multi-user.target
		EOF
		if [ "$makes" ]; then
			echo "cannot enable sardine-ssh-host-keys.service: machines of this image would have no SSH host keys"
			exit 1
		fi
	fi
fi

# The key of the build, and traces of shells.
for home in /root /home/*; do
	[ -d "$home" ] && [ ! -L "$home" ] || continue
	rm -f "$home/.bash_history" "$home/.ash_history" "$home/.zsh_history" "$home/.sh_history" "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts"
	keys=$home/.ssh/authorized_keys
	if [ "$key" ] && [ -f "$keys" ] && [ ! -L "$keys" ] && grep -qF "$key" "$keys"; then
		left=$(grep -vF "$key" "$keys")
		if [ "$left" ]; then
			printf '%s\n' "$left" >"$keys"
		else
			rm -f "$keys"
		fi
	fi
done

# Leases and what DHCP clients call themselves.
within /var/lib/dhcp -type f
within /var/lib/dhclient -type f
within /var/lib/dhcpcd -type f
within /var/lib/NetworkManager \( -name '*lease*' -o -name 'secret_key' -o -name 'seen-bssids' \)

# Package caches, temporary files and logs.
within /var/cache/apt/archives -type f -name '*.deb'
within /var/lib/apt/lists -type f
for dir in /var/cache/dnf /var/cache/yum /var/cache/zypp /var/cache/pacman/pkg /var/cache/apk; do
	within "$dir" -type f
done
within /tmp
within /var/tmp
within /var/log/journal
within /var/log -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.[0-9]' -o -name '*.old' \)
if [ -d /var/log ]; then
	find /var/log -xdev -type f -exec sh -c 'for file; do : >"$file"; done' sh {} + 2>/dev/null
fi

# Blocks that are no longer used are not exported.
sync
if command -v fstrim >/dev/null 2>&1; then
	fstrim -a >/dev/null 2>&1
fi
exit 0
