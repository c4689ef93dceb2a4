package build

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// If neither machine of a verification can be removed, the error names both.
func TestRemoveAll(t *testing.T) {
	dir := t.TempDir()
	b := &builder{host: virttest.OpenEmpty(t), dirs: config.Dirs{Overlays: filepath.Join(dir, "clones"), Jobs: filepath.Join(dir, "jobs")}}
	machines := []*machine{nil}
	for _, name := range []string{"one", "two"} {
		virttest.Start(t, b.host, &libvirtxml.Domain{Name: name}).Free() // not of a job
		machines = append(machines, &machine{b: b, name: name, jobDir: b.dirs.Job(name), started: &vm.Started{Instance: &vm.Instance{}}})
	}
	err := removeAll(t.Context(), machines)
	if !errors.Is(err, errdefs.ErrNotOurs) || !strings.Contains(err.Error(), "the machine one") || !strings.Contains(err.Error(), "the machine two") {
		t.Errorf("got %v", err)
	}
}

func TestIdentities(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3 root@one"
	a := parseIdentity("machine-id 0123\nhost-key " + key + "\nnoise\n")
	a.address = "127.0.0.1:1"
	for name, c := range map[string]struct {
		text, address, want string
	}{
		"equal in nothing":     {"machine-id 4567\nhost-key ssh-ed25519 BBBB root@two\n", "127.0.0.1:2", ""},
		"the address":          {"machine-id 4567\n", "127.0.0.1:1", "have the address 127.0.0.1:1"},
		"the machine ID":       {"machine-id 0123\n", "127.0.0.1:2", "machine ID \"0123\""},
		"a host key":           {"machine-id 4567\nhost-key ssh-rsa X\nhost-key ssh-ed25519 AAAAC3 root@two\n", "127.0.0.1:2", "same SSH host key (\"ssh-ed25519\")"},
		"no identity, no keys": {"", "127.0.0.1:2", ""},
	} {
		b := parseIdentity(c.text)
		b.address = c.address
		err := a.differs(b)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
