#!/usr/bin/env bash
# test-rpm.sh installs, upgrades and removes the .rpm with rpm in a clean Debian. rpm knows none
# of Debian's packages there, so dependencies are not checked: the test shows which files the
# package owns and what its scriptlets do, not that the program runs on Fedora. make test-package
# runs it:
#
#   DEBIAN_PACKAGES='…' scripts/in-debian.sh SUITE scripts/test-rpm.sh OLD.rpm NEW.rpm
set -euo pipefail
old=$1 new=$2
package=gitlab-sardine-executor
settings=/etc/$package/config.toml

fail() {
	echo "test-rpm: $*" >&2
	exit 1
}
say() { echo "test-rpm: $*" >&2; }
version() { rpm -qp --qf '%{VERSION}' "$1"; }

say 'dependencies'
for needed in libvirt-daemon-kvm qemu-img; do
	rpm -qpR "$new" | grep -qx "$needed" || fail "it does not need $needed"
done
[[ $(rpm -qp --qf '%{LICENSE}' "$new") == Apache-2.0 ]] || fail 'its licence'

say "install $(version "$old")"
files_before=$(find /etc /usr /var/lib -xdev -name '*sardine*' | sort)
rpm -i --nodeps "$old"
rpm -V --nodeps $package || fail 'files differ from the package'
[[ $(rpm -q --qf '%{VERSION}' $package) == "$(version "$old")" ]] || fail "version: $(rpm -q $package)"
[[ $(stat -c '%U %a' /var/lib/$package) == 'root 711' ]] || fail "storage: $(stat -c '%U %a' /var/lib/$package)"
foreign=$(rpm -q --qf '[%{FILENAMES} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMODES:perms}\n]' $package |
	grep -v -e ' root:root -rw-r--r--$' -e ' root:root drwxr-xr-x$' -e '^/usr/bin/[a-z-]* root:root -rwxr-xr-x$' || true)
[[ ! $foreign ]] || fail "owner or mode: $foreign"
[[ $(rpm -qc $package) == "$settings" ]] || fail "settings: $(rpm -qc $package)"
for file in /usr/bin/$package /usr/share/man/man8/$package.8.gz /usr/share/bash-completion/completions/$package \
	/usr/share/zsh/site-functions/_$package /usr/share/fish/vendor_completions.d/$package.fish \
	/usr/lib/systemd/system/$package.service /usr/lib/systemd/system/$package-{sweep,prune}.{service,timer} \
	/usr/lib/tmpfiles.d/$package.conf; do
	[[ -s $file ]] || fail "$file is missing"
done
unowned=$(comm -13 <(echo "$files_before") <(find /etc /usr -xdev -type f -name '*sardine*' | sort) |
	while read -r file; do rpm -qf "$file" >/dev/null || echo "$file"; done)
[[ ! $unowned ]] || fail "not of the package: $unowned"

say "upgrade to $(version "$new")"
echo '# changed' >>$settings
touch /var/lib/$package/kept
rpm -U --nodeps "$new"
[[ $(rpm -q --qf '%{VERSION}' $package) == "$(version "$new")" ]] || fail "version: $(rpm -q $package)"
tail -n 1 $settings | grep -q '# changed' || fail 'the upgrade has changed the settings'

say 'remove'
rpm -e --nodeps $package
[[ ! -e /usr/bin/$package ]] || fail 'the program is left'
tail -n 1 $settings.rpmsave | grep -q '# changed' || fail 'the changed settings are gone'
[[ -e /var/lib/$package/kept ]] || fail 'the storage is gone'
rm -r $settings.rpmsave /var/lib/$package
rmdir --ignore-fail-on-non-empty /etc/$package 2>/dev/null || true
left=$(comm -13 <(echo "$files_before") <(find /etc /usr /var/lib -xdev -name '*sardine*' | sort))
[[ ! $left ]] || fail "left: $left"
say 'passed'
