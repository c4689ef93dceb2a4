//go:build boot

package admin

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sealRoot runs the script $1 in a root directory with this host's programs, in which a build
// has left everything that must go, and lists what stays.
const sealRoot = `
root=$2
cd "$root"
mkdir -p usr etc/ssh etc/systemd/system var/log/journal/0123 var/tmp/d var/lib/dbus var/lib/dhcp var/lib/systemd var/lib/apt/lists \
	var/lib/NetworkManager var/cache/apt/archives root/.ssh home/ci/.ssh home/other/.ssh tmp run/systemd/system proc dev boot/efi/loader
mount --bind /usr usr; mount --bind /dev dev; mount -t proc proc proc
for link in bin sbin lib lib64; do ln -s usr/$link $link; done
echo 0123 | tee etc/machine-id var/lib/dbus/machine-id >/dev/null
echo x | tee etc/ssh/sshd_config etc/ssh/ssh_host_rsa_key etc/ssh/ssh_host_rsa_key.pub var/log/a.log var/log/a.log.1 var/log/b.gz \
	var/log/journal/0123/j var/lib/dhcp/dhclient.leases var/lib/systemd/random-seed var/lib/systemd/credential.secret boot/efi/loader/random-seed \
	var/lib/NetworkManager/secret_key var/lib/NetworkManager/internal-1-eth0.lease var/lib/NetworkManager/stays \
	var/cache/apt/archives/x.deb var/lib/apt/lists/list tmp/.hidden "var/tmp/d/a b" root/.bash_history >/dev/null
echo 'ssh-ed25519 AAAAKEY ci' >home/ci/.ssh/authorized_keys
printf 'ssh-rsa OTHER\nssh-ed25519 AAAAKEY ci\n' >home/other/.ssh/authorized_keys
chroot . sh -c "$(cat "$1")" sh AAAAKEY
find . -xdev \( -path ./usr -o -path ./proc -o -path ./dev \) -prune -o -type f -printf '%P %s\n' -o -type l -path '*systemd*' -printf '%P -> %l\n' | sort
cat home/other/.ssh/authorized_keys`

// TestSeal: nothing stays that must differ between machines, or that the build has left. The
// keys of others stay, and Debian gets a unit that makes host keys.
func TestSeal(t *testing.T) {
	script, err := filepath.Abs("../../executor/build/scripts/seal.sh")
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-euc", sealRoot, "bash", script, t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	const want = `etc/machine-id 0
etc/ssh/sshd_config 2
etc/systemd/system/multi-user.target.wants/sardine-ssh-host-keys.service -> ../sardine-ssh-host-keys.service
home/other/.ssh/authorized_keys 14
var/lib/NetworkManager/stays 2
var/log/a.log 0
ssh-rsa OTHER
`
	var got strings.Builder
	for line := range strings.Lines(string(output)) {
		if !strings.HasPrefix(line, "etc/systemd/system/sardine-ssh-host-keys.service ") { // its size depends on a path
			got.WriteString(line)
		}
	}
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}
