package build

import (
	"crypto/ed25519"
	"os/exec"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm/guestssh"
)

// The script is valid for the shells of small guests, and names what must go: see its sources.
func TestSealScript(t *testing.T) {
	for _, shell := range [][]string{{"sh", "-n"}, {"bash", "--posix", "-n"}} {
		cmd := exec.Command(shell[0], append(shell[1:], "-c", sealScript)...)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", shell, err, output)
		}
	}
	for _, part := range []string{
		"cloud-init clean", ": >/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/ssh/ssh_host_*", "ssh-keygen) -A",
		"/var/lib/systemd/random-seed", "loader/random-seed", "/var/lib/systemd/credential.secret", ".bash_history", "authorized_keys",
		"/var/lib/dhcp ", "/var/lib/NetworkManager", "/var/log", "/var/cache/apt", "fstrim",
	} {
		if !strings.Contains(sealScript, part) {
			t.Errorf("nothing about %s", part)
		}
	}
}

func TestPublicKey(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := publicKey(guestssh.Login{Key: key}); !strings.HasPrefix(got, "AAAAC3NzaC1lZDI1NTE5") || strings.ContainsAny(got, " \n") {
		t.Errorf("got %q", got)
	}
	if got := publicKey(guestssh.Login{Password: "x"}); got != "" {
		t.Errorf("without a key: %q", got)
	}
}
