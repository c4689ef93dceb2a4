//go:build boot && nightly

package admin

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
)

// prepareFull leaves what a seal must remove, and a user with a password. cloud-init is switched
// off, so that only the seal makes the host keys of a machine without a seed.
const prepareFull = `#!/bin/bash
set -e
useradd -m -s /bin/bash builder
echo builder:correct-horse | chpasswd
echo 'builder ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/builder
echo 'PasswordAuthentication yes' >/etc/ssh/sshd_config.d/10-password.conf
touch /etc/cloud/cloud-init.disabled
cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub >/opt/build-identity
echo secret >/root/.bash_history
echo secret >/var/log/secret.log
echo secret >/var/tmp/secret
sync
`

// askSealed prints what is left in a machine of the new image, and the identity of the build.
const askSealed = `sudo -n cat /root/.bash_history /var/log/secret.log /var/tmp/secret 2>/dev/null
sudo -n cat /home/ci/.ssh/authorized_keys /root/.ssh/authorized_keys 2>/dev/null
echo "built $(head -n 1 /opt/build-identity) now $(cat /etc/machine-id)"
for key in /etc/ssh/ssh_host_*_key.pub; do echo "key $(cut -d' ' -f1,2 $key)"; done
echo "was $(sed -n 2p /opt/build-identity | cut -d' ' -f1,2)"
systemctl is-active sardine-ssh-host-keys.service`

// TestBuildAsRoot is TestBuild with the libvirt of the system, where QEMU runs as another user.
func TestBuildAsRoot(t *testing.T) { testBuild(t, testbed.System(t)) }

// TestBuildFullGuest seals a whole Debian: machines of the image have machine IDs and host keys
// of their own, also without cloud-init; its file system is clean.
func TestBuildFullGuest(t *testing.T) {
	s := newSite(t, testbed.Session(t))
	s.Configure(t, `timeout = "15m"`)
	content, err := os.ReadFile(testbed.FullGuest(t))
	if err != nil {
		t.Fatal(err)
	}
	disk := s.Mode.WriteFile(t, filepath.Join(s.dir, "full.qcow2"), string(content))
	out := "oci:" + filepath.Join(s.dir, "out") + ":1"
	b := s.build(t, "--from", "file:"+disk, "--disk", "3GiB", "--memory", "1GiB",
		"--run", s.Mode.WriteFile(t, filepath.Join(s.dir, "full.sh"), prepareFull), out)
	err = b.cmd.Wait()
	t.Log(b.stderr.String())
	if err != nil {
		t.Fatal(err)
	}
	s.Configure(t, `timeout = "15m"`, "[[image]]", fmt.Sprintf("match = %q", out), `username = "builder"`, `password = "correct-horse"`)
	said := s.run(t, "try", out, "--", "sh", "-c", askSealed)
	t.Log(said)
	if strings.Contains(said, "secret") || strings.Contains(said, "ssh-ed25519 ") && strings.Contains(said, "GitLab") {
		t.Error("the seal has left something")
	}
	var built, now, was string
	keys := make(map[string]bool)
	for _, line := range strings.Split(said, "\n") {
		fmt.Sscanf(line, "built %s now %s", &built, &now)
		if key, ok := strings.CutPrefix(line, "key "); ok {
			keys[key] = true
		}
		if key, ok := strings.CutPrefix(line, "was "); ok {
			was = key
		}
	}
	if built == "" || len(now) != 32 || built == now {
		t.Errorf("machine IDs: %q in the build, %q now", built, now)
	}
	if len(keys) < 2 || was == "" || keys[was] {
		t.Errorf("host keys: %q in the build, %v now", was, keys)
	}
	if !strings.Contains(said, "\nactive") {
		t.Error("the unit that makes the host keys did not run")
	}
	s.checkFileSystem(t)
}

// checkFileSystem checks the root file system of the image in the store.
func (s *site) checkFileSystem(t *testing.T) {
	t.Helper()
	disks, _ := filepath.Glob(filepath.Join(s.Storage, "images", "*", "full.qcow2"))
	raw := filepath.Join(s.dir, "full.raw")
	for _, disk := range disks {
		if !strings.Contains(s.Mode.Run(t, "qemu-img", "info", disk), "backing file") {
			continue // the base
		}
		s.Mode.Run(t, "qemu-img", "convert", "-O", "raw", disk, raw)
		// fields of sfdisk -d: the second partition
		s.Mode.Run(t, "sh", "-euc", `
start=$(/sbin/sfdisk -d "$1" | sed -n 's/.*2 : start= *\([0-9]*\),.*/\1/p')
size=$(/sbin/sfdisk -d "$1" | sed -n 's/.*2 : start=.*size= *\([0-9]*\),.*/\1/p')
dd if="$1" of="$1.ext4" bs=512 skip="$start" count="$size" conv=sparse 2>/dev/null
/sbin/e2fsck -fn "$1.ext4"`, "sh", raw)
		return
	}
	t.Errorf("no disk of the image is in the store: %v", disks)
}
