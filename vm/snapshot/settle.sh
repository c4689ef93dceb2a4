# Run in a guest that will be saved, as root: wait until it has booted. What it still
# does then is done again in each of its clones, so that this is no more than a
# courtesy.
if command -v cloud-init >/dev/null 2>&1; then
	timeout 40 cloud-init status --wait >/dev/null 2>&1
fi
if [ -d /run/systemd/system ]; then
	timeout 40 systemctl is-system-running --wait >/dev/null 2>&1
fi
sync
exit 0
