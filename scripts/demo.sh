#!/usr/bin/env bash
# demo.sh shows the program at work on this machine: it pushes the test guest to
# a registry on 127.0.0.1 and runs a job in it, through all four stages of GitLab
# Runner. Whatever it starts is gone when it ends. make demo builds what it needs.
#
# An ordinary user gets a libvirtd of the user's own, and needs no privileges.
# Root gets one as well, in namespaces of its own: whether this machine's runs,
# and what its networks are called, makes no difference, and nothing of it is
# touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=$PWD/bin/gitlab-sardine-executor

say() {
	if [[ -t 1 ]]; then printf '\n\e[1m%s\e[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}

guest=${1-$(scripts/build-guest.sh --path)}
for file in "$program" "$guest"; do
	if [[ ! -e $file ]]; then
		echo "demo: $file is missing; run: make demo" >&2
		exit 1
	fi
done

if [[ $(id -u) = 0 && ${TESTBED_HOST-} != inside ]]; then
	say 'As root: starting a libvirtd in namespaces of its own (this machine and its libvirt are not touched)'
	exec go run ./internal/testbed/nsrun "$0" "$guest"
fi

# Short, since the paths of UNIX sockets are limited to 107 bytes.
work=$(mktemp -d /tmp/demo.XXXXXX)
registry=
finish() {
	local daemon
	[[ -z $registry ]] || kill "$registry" 2>/dev/null || true
	for daemon in libvirtd virtlogd; do # the user's; libvirt would let them wait two minutes for more to do
		daemon=$work/run/libvirt/$daemon.pid
		[[ ! -e $daemon ]] || kill "$(cat "$daemon")" 2>/dev/null || true
	done
	wait
	rm -rf "$work"
}
trap finish EXIT

if [[ $(id -u) = 0 ]]; then
	chmod 755 "$work" # for QEMU's user
	connect=qemu:///system
else
	say "As $(id -un): libvirt starts a libvirtd of the user's own"
	connect=qemu:///session
	# Apart from the machines that this user has.
	export XDG_RUNTIME_DIR=$work/run XDG_CONFIG_HOME=$work/config XDG_CACHE_HOME=$work/cache XDG_DATA_HOME=$work/share
	mkdir -m 700 "$XDG_RUNTIME_DIR"
fi

say 'Starting a registry on 127.0.0.1'
cat >"$work/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: 127.0.0.1:0}
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
for _ in {1..200}; do
	host=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/registry.log")
	[[ -z $host ]] || break
	if ! kill -0 "$registry" 2>/dev/null; then
		cat "$work/registry.log" >&2
		exit 1
	fi
	sleep 0.05
done
image=$host/demo/guest:latest
export CONTAINERS_REGISTRIES_CONF=$work/registries.conf
cat >"$CONTAINERS_REGISTRIES_CONF" <<TOML
[[registry]]
location = "$host"
insecure = true
TOML

cat >"$work/config.toml" <<TOML
[defaults]
connect = "$connect"
storage = "$work/storage"
guest_builds_dir = "/builds"
guest_cache_dir = "/cache"
TOML

say "Pushing the test guest to $image"
"$program" export --disk "$guest" --vm-config scripts/guest/vmconfig.json "oci:$work/layout:latest"
"$program" push "oci:$work/layout:latest" "$image"

say "Running a job: gitlab-sardine-executor try $image -- uname -a"
"$program" --config "$work/config.toml" try "$image" -- uname -a

say 'Done. Removing what the demo started.'
