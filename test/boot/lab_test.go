//go:build boot

package boot

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

const guestVariable = "BOOTTEST_GUEST" // path of the test guest's disk

// guestLogin is how to log in to the test guest.
var guestLogin = guestssh.Login{User: "vagrant", Password: "vagrant"}

// A lab is where a test makes its machines: libvirt of the mode that it runs in,
// and directories.
type lab struct {
	mode  string
	dir   string
	guest string // the test guest's disk
	host  *virt.Host
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{mode: os.Getenv(modeVariable), dir: os.Getenv(dirVariable), guest: os.Getenv(guestVariable)}
	host, err := virt.Open(t.Context(), l.connect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	l.host = host
	return l
}

func (l *lab) connect() string { return "qemu:///" + l.mode }

// virsh is virsh of the lab's libvirt.
func (l *lab) virsh(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "virsh", append([]string{"--quiet", "--connect", l.connect()}, args...)...)
}

// spec is a machine of the test guest on the mode's default network.
func (l *lab) spec(name string, change ...func(*vm.Spec)) vm.Spec {
	spec := vm.Spec{
		Name: name,
		Source: domain.Source{
			Disks: []disk.Disk{{Name: "guest.qcow2", Path: l.guest, Format: "qcow2", VirtualSize: 48 << 20}},
			Accel: domain.AccelTCG,
		},
		Size:    domain.Size{CPUs: 1, Memory: 256 << 20},
		Place:   vm.Place{OverlayDir: filepath.Join(l.dir, "clones"), JobDir: filepath.Join(l.dir, "jobs", name)},
		Network: map[string]string{"session": network.User, "system": "default"}[l.mode],
		Record:  record.Record{Job: "1", Created: time.Unix(1700000000, 0).UTC(), Expires: time.Unix(4000000000, 0).UTC()},
	}
	spec.Admission.Reserve = -1
	for _, c := range change {
		c(&spec)
	}
	return spec
}

func onNetwork(name string) func(*vm.Spec) { return func(s *vm.Spec) { s.Network = name } }

// start starts a machine that is removed at the end of the test.
func (l *lab) start(t testing.TB, spec vm.Spec) *vm.Started {
	t.Helper()
	guest, err := vm.Start(t.Context(), l.host, spec)
	if err != nil {
		t.Fatalf("start %s: %v", spec.Name, err)
	}
	t.Cleanup(func() {
		guest.Close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		// Not by l.host: the daemon may have been restarted.
		host, err := virt.Open(ctx, l.connect())
		if err != nil {
			t.Errorf("remove %s: %v", spec.Name, err)
			return
		}
		defer host.Close()
		if err := removal.Remove(ctx, host, spec.Name, spec.Place); err != nil {
			t.Errorf("remove %s: %v", spec.Name, err)
		}
	})
	for _, warning := range guest.Warnings {
		t.Logf("%s: warning: %s", spec.Name, warning)
	}
	return guest
}

// ready starts a machine and waits until it answers.
func (l *lab) ready(t testing.TB, spec vm.Spec) *vm.Started {
	t.Helper()
	guest := l.start(t, spec)
	began := time.Now()
	if err := waitReady(t, guest, guestLogin); err != nil {
		t.Fatalf("%s does not become ready: %v\n%s", spec.Name, err, console.TailOf(err))
	}
	t.Logf("%s ready at %s after %v", spec.Name, guest.Record().Address, time.Since(began).Round(time.Millisecond))
	return guest
}

func waitReady(t testing.TB, guest *vm.Started, login guestssh.Login) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return guest.WaitReady(ctx, login)
}

// An instance is a machine that was started or found.
type instance interface {
	Name() string
	Record() record.Record
	Run(ctx context.Context, cmd guestssh.Command) (int, error)
}

// script runs a script in the guest and returns its output and status.
func script(t testing.TB, guest instance, text string) (string, int) {
	t.Helper()
	var output bytes.Buffer
	status, err := guest.Run(t.Context(), guestssh.Command{Line: "sh", Stdin: strings.NewReader(text), Stdout: &output, Stderr: &output})
	if err != nil {
		t.Fatalf("run %q in %s: %v", text, guest.Name(), err)
	}
	return output.String(), status
}
