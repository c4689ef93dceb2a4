//go:build boot && nightly

package boot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/firmware"
	"gitlab-sardine-executor/vm/removal"
)

// A disk on which UEFI finds nothing is the image's fault, and the error has what the
// firmware says.
func TestUEFIFindsNothing(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		for _, kind := range []string{firmware.Auto, firmware.Secure} {
			spec := l.spec("nothing", onDisk(l.uefiOnly(t, kind == firmware.Secure)), func(s *vm.Spec) { s.Firmware = kind })
			guest := l.start(t, spec)
			// However slow the host is, the firmware has come as far as it comes.
			for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
				console, _ := os.ReadFile(filepath.Join(spec.JobDir, vm.ConsoleFile))
				if firmware.Refusal(string(console)) != "" {
					break
				}
				if time.Since(began) > 3*time.Minute {
					t.Fatalf("%s: the firmware does not give up:\n%s", kind, console)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			err := guest.WaitReady(ctx, guestLogin)
			cancel()
			t.Logf("%s: %v\n%s", kind, err, console.TailOf(err))
			if !errors.Is(err, errdefs.ErrNoBoot) || kind == firmware.Secure && !strings.Contains(err.Error(), "signed") {
				t.Errorf("%s: got %v", kind, err)
			}
			if err := removal.Remove(t.Context(), l.host, spec.Name, spec.Place); err != nil {
				t.Fatal(err)
			}
		}
	})
}
