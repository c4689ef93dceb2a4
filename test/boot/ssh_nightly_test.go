//go:build boot && nightly

package boot

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/virt"
)

// A daemon that is restarted, by an upgrade say, takes no job with it.
func TestLibvirtdRestartsDuringAScript(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		guest := l.ready(t, l.spec("restarted"))
		ended := running(t, guest, "while ! [ -e /tmp/go ]; do sleep 0.1; done", guestssh.Keepalive{})
		restartLibvirtd(t)
		select {
		case err := <-ended:
			t.Fatalf("the script ended with the daemon: %v", err)
		case <-time.After(5 * time.Second): // two looks at the guest's state and a keepalive
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		host, err := virt.Open(ctx, l.connect())
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		again, err := vm.Find(ctx, host, guest.Name(), filepath.Join(l.dir, "jobs", guest.Name()))
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if err := again.Connect(ctx, guestLogin); err != nil {
			t.Fatal(err)
		}
		script(t, again, "touch /tmp/go")
		if err := <-ended; err != nil {
			t.Errorf("the script ended with %v", err)
		}
	})
}
