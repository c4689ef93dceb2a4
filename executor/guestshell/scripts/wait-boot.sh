# Runs in a guest before the directories are created: waits for the end of its boot. Lines
# that begin with "say " go to the job's log.

wait_boot() {
	if [ -d /run/systemd/system ]; then
		# systemd before 240 does not wait. Without D-Bus the state is offline or unknown.
		while :; do
			state=$(systemctl is-system-running --wait 2>/dev/null)
			case $state in
			initializing | starting) sleep 1 ;;
			*) break ;;
			esac
		done
		if [ "$state" = degraded ]; then
			failed=$(systemctl list-units --failed --plain --no-legend 2>/dev/null | cut -d ' ' -f 1 | head -n 5)
			echo "say The guest booted with failed units:" $failed
		fi
	fi
	# cloud-init runs in this boot, and has not ended. (Asking it starts a Python.)
	if [ -d /run/cloud-init ] && [ ! -e /run/cloud-init/disabled ]; then
		if [ ! -e /run/cloud-init/result.json ] && command -v cloud-init >/dev/null 2>&1; then
			cloud-init status --wait >/dev/null 2>&1
		fi
		if grep -q '"errors": \[$' /run/cloud-init/result.json 2>/dev/null; then
			echo "say cloud-init reports errors (in the guest: cloud-init status --long)"
		fi
	fi
}

wait_boot </dev/null
