#!/usr/bin/env bash
# first-hour.sh walks through the first hour of an administrator on a clean Debian 13, and
# writes what was printed into docs/first-hour.md. make first-hour builds the package and
# calls it in a root directory of that release:
#
#   DEBIAN_PACKAGES='…' scripts/in-debian.sh trixie scripts/first-hour.sh PACKAGE.deb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=gitlab-sardine-executor
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

if [[ ${1-} != --inside ]]; then
	package=$1
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d # no daemons of this machine
	chmod 755 /usr/sbin/policy-rc.d
	work=$(mktemp -d /tmp/walk.XXXXXX)
	chmod 755 "$work"
	cp "$package" "$work/${program}_VERSION+deb13_amd64.deb"
	CGO_ENABLED=0 go build -o "$work/nsrun" ./internal/testbed/nsrun
	cp scripts/guest/vmconfig.json "$work"
	cp "$(scripts/build-guest.sh --path)" "$work/guest.qcow2"
	page=$PWD/docs/first-hour.md
	apt-get -qq update
	(cd "$work" && apt-get -qq -o Dpkg::Use-Pty=0 -o APT::Install-Recommends=true install "./${program}_VERSION+deb13_amd64.deb" >"$work/apt.log" 2>&1) ||
		{ tail -n 20 "$work/apt.log" >&2; exit 1; }
	# libvirtd, in namespaces: nothing but it is started for the walk.
	"$work/nsrun" "$PWD/scripts/first-hour.sh" --inside "$work" "$page.new"
	mv "$page.new" "$page"
	echo "$page"
	exit
fi
work=$2 page=$3
exec >"$page"
cd "$work"

# shown COMMAND prints a command with what it prints. A status other than 0 follows.
shown() {
	local status=0
	echo '```console'
	echo "# $*"
	bash -c "$*" >"$work/output" 2>&1 </dev/null || status=$?
	# Columns for terminals, and what differs in each run.
	sed -e 's/\x1b\[[0-9;]*[A-Za-z]//g' -e 's/\r$//' -e "s|$work|/root|g" -e "s|/run/home/root|/root|g" "$work/output"
	[[ $status == 0 ]] || echo "(exit status $status)"
	echo '```'
	echo
}
text() {
	cat
	echo
}
settings() { cat >/etc/$program/config.toml; }
mkdir -p /etc/$program # nsrun has an /etc of its own
: >/etc/$program/config.toml

text <<'TEXT'
# The first hour

<!-- Made by make first-hour, from a real run; do not edit. -->

A walk from a clean Debian 13 to the first job, and then into five mistakes, to show that their messages suffice. Everything
below was printed by a real run of `scripts/first-hour.sh`; only the directory is replaced by `/root`. The host has no KVM, which
`doctor` says. The image is the small test guest of this repository; any other works in the same way
([README](../README.md#make-an-image)).

## Two commands to the first job

Install the package, and run a job:

```console
# apt-get install ./gitlab-sardine-executor_VERSION+deb13_amd64.deb
```
TEXT
shown "$program export --disk guest.qcow2 --vm-config vmconfig.json oci:guest:latest"
shown "$program try oci:guest:latest -- uname -a"
text <<'TEXT'
`doctor` tells what else this host needs before GitLab Runner uses it. Each finding has a command or a setting:
TEXT
shown "$program doctor"
text <<'TEXT'
Then [configure GitLab Runner](gitlab-runner.md).

## A wrong password

The image says which user and password its guest has. Here an image section says otherwise:
TEXT
settings <<'TOML'
[[image]]
match = "oci:/**"
password = "wrong"
login_grace = "5s"
TOML
shown "cat /etc/$program/config.toml"
shown "$program try oci:guest:latest -- uname -a"
text <<'TEXT'
## A typo in the settings
TEXT
settings <<'TOML'
[defaults]
slotz = 4
TOML
shown "$program config check"
shown "$program try oci:guest:latest -- uname -a"
text <<'TEXT'
## A full disk

The storage is on a file system of 64 MiB here.
TEXT
mkdir -p /srv/small
mount -t tmpfs -o size=64m,mode=755 small /srv/small
settings <<'TOML'
[defaults]
storage = "/srv/small"
TOML
shown "df -h /srv/small"
shown "$program try oci:guest:latest -- uname -a"
umount /srv/small
text <<'TEXT'
## A libvirtd that does not run
TEXT
: >/etc/$program/config.toml
mv /run/libvirt/libvirt-sock /run/libvirt/libvirt-sock.away
shown "$program try oci:guest:latest -- uname -a"
shown "$program doctor | head -n 8"
mv /run/libvirt/libvirt-sock.away /run/libvirt/libvirt-sock
text <<'TEXT'
## A socket that the user may not open

An ordinary user who is not in the group `libvirt` asks for the system's libvirt:
TEXT
useradd --create-home ci
chmod 770 /run/libvirt/libvirt-sock
settings <<'TOML'
[defaults]
connect = "qemu:///system"
TOML
shown "cat /etc/$program/config.toml"
shown "setpriv --reuid ci --regid ci --clear-groups env HOME=/home/ci $program try oci:guest:latest -- uname -a"
