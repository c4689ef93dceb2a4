#!/usr/bin/env bash
# test-package.sh installs the package in a clean Debian, runs a job with it, upgrades it,
# removes and purges it. make test-package runs it in both releases:
#
#   DEBIAN_PACKAGES='…' scripts/in-debian.sh SUITE scripts/test-package.sh OLD.deb NEW.deb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
old=$1 new=$2
package=gitlab-sardine-executor
export DEBIAN_FRONTEND=noninteractive

fail() {
	echo "test-package: $*" >&2
	exit 1
}
say() { echo "test-package: $*" >&2; }
installed_version() { $package version | sed -n 1p; }
version() { dpkg-deb --field "$1" Version; }

# Maintainer scripts of other packages must not start daemons of this machine.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d

say "lintian: $(basename "$new")"
lintian --allow-root --fail-on error --suppress-tags bad-distribution-in-changes-file "$new"

say 'install'
apt-get -qq update
files_before=$(find /etc /usr /var/lib -xdev \( -name '*sardine*' \) | sort)
apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends "$(realpath "$old")" passt dnsmasq-base iptables iproute2 >/tmp/apt.log 2>&1 ||
	{ tail -n 20 /tmp/apt.log >&2; fail "the package cannot be installed"; }
[[ $(installed_version) == "$(version "$old" | sed 's/+deb.*//')" ]] || fail "version: $(installed_version)"
[[ $(stat -c '%U %a' /var/lib/$package) == 'root 711' ]] || fail "storage: $(stat -c '%U %a' /var/lib/$package)"
for file in /usr/share/man/man8/$package.8.gz /usr/share/bash-completion/completions/$package \
	/usr/share/zsh/vendor-completions/_$package /usr/share/fish/vendor_completions.d/$package.fish; do
	[[ -s $file ]] || fail "$file is missing"
done
systemd-analyze verify /usr/lib/systemd/system/$package-{sweep,prune}.{service,timer}
systemd-analyze verify /usr/lib/systemd/system/$package.service /usr/lib/systemd/user/$package.service
[[ ! -e /etc/systemd/system/multi-user.target.wants/$package.service ]] || fail 'serve is enabled'
[[ -e /etc/systemd/system/timers.target.wants/$package-sweep.timer ]] || fail 'the timer of sweep is not enabled'
[[ ! -e /etc/systemd/system/timers.target.wants/$package-prune.timer ]] || fail 'the timer of prune is enabled'
(
	. /usr/share/bash-completion/completions/$package
	COMP_WORDS=("$package" doc) COMP_CWORD=1
	_gitlab_sardine_executor
	[[ ${COMPREPLY[*]} == doctor ]] || fail "completion: ${COMPREPLY[*]}"
)

say 'a job'
work=$(mktemp -d /tmp/job.XXXXXX)
chmod 755 "$work"
CGO_ENABLED=0 go build -o "$work/nsrun" ./internal/testbed/nsrun
$package export --disk "$(scripts/build-guest.sh --path)" --vm-config scripts/guest/vmconfig.json "oci:$work/guest:latest"
"$work/nsrun" $package try "oci:$work/guest:latest" -- sh -c 'echo the job runs as $(id -un)' | tee "$work/log"
grep -q 'the job runs as vagrant' "$work/log" || fail 'the job did not run'

say 'upgrade'
echo '# changed' >>/etc/$package/config.toml
dpkg --install "$new" >/dev/null
[[ $(installed_version) == "$(version "$new" | sed 's/+deb.*//')" ]] || fail "version: $(installed_version)"
tail -n 1 /etc/$package/config.toml | grep -q '# changed' || fail 'the upgrade has changed the settings'

say 'remove'
dpkg --remove $package >/dev/null
[[ ! -e /usr/bin/$package ]] || fail 'the program is left'
[[ -e /etc/$package/config.toml ]] || fail 'remove has removed the settings'

say 'purge'
dpkg --purge $package >/dev/null
left=$(comm -13 <(echo "$files_before") <(find /etc /usr /var/lib -xdev -name '*sardine*' | sort))
[[ ! $left ]] || fail "left: $left"
say "passed on $(. /etc/os-release; echo "$PRETTY_NAME")"
