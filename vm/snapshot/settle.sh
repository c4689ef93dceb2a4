# Runs as root in a guest before it is saved: wait for the end of the boot. What remains is
# done in each clone, so this is an optimization only.
if command -v cloud-init >/dev/null 2>&1; then
	timeout 40 cloud-init status --wait >/dev/null 2>&1
fi
if [ -d /run/systemd/system ]; then
	timeout 40 systemctl is-system-running --wait >/dev/null 2>&1
fi
sync
exit 0
