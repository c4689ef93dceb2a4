package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// The values of [Spec.Accel].
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

const (
	// kvmProbeTimeout is far more than a working KVM needs (a tenth of a second).
	// Where nested virtualisation is emulated badly, /dev/kvm opens and the
	// simplest guest takes seconds, or for ever.
	kvmProbeTimeout = 2 * time.Second
	// kvmProbeExit is the status of a QEMU whose guest wrote 0x10 to the port of
	// isa-debug-exit: (value << 1) | 1.
	kvmProbeExit = 0x10<<1 | 1
)

// KVMWorks says whether guests can run on this host's processor. The only test
// that can be believed is to boot one: a boot sector that ends QEMU by writing
// to a port. Its outcome is kept in the directory cache until the host boots
// again; an empty cache keeps nothing. The error says why KVM does not work.
func KVMWorks(ctx context.Context, cache string) error {
	if runtime.GOARCH != "amd64" {
		return kvmOpens()
	}
	note := noteIn(cache, fmt.Sprintf("kvm-%d", os.Geteuid()))
	if reason, known := note.read(); known {
		return reasonError(reason)
	}
	err := probeKVM(ctx)
	if ctx.Err() == nil {
		reason := ""
		if err != nil {
			reason = err.Error()
		}
		note.write(reason)
	}
	return err
}

func reasonError(reason string) error {
	if reason == "" {
		return nil
	}
	return errors.New(reason)
}

func kvmOpens() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// kvmProbe is a boot sector: mov al, 0x10; out 0xf4, al; then halt for ever.
var kvmProbe = append(append([]byte{0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd}, make([]byte, 503)...), 0x55, 0xaa)

func probeKVM(ctx context.Context) error {
	if err := kvmOpens(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sardine-kvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sector := filepath.Join(dir, "boot")
	if err := os.WriteFile(sector, kvmProbe, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kvmProbeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-nodefaults", "-no-user-config",
		"-display", "none", "-m", "16", "-boot", "c",
		"-blockdev", "driver=raw,node-name=boot,file.driver=file,file.filename="+strings.ReplaceAll(sector, ",", ",,"),
		"-device", "ide-hd,drive=boot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("a boot sector did not finish within %s", kvmProbeTimeout)
	case errors.As(err, &exit) && exit.ExitCode() == kvmProbeExit:
		return nil
	case err != nil:
		return fmt.Errorf("QEMU with KVM: %w", err)
	}
	return errors.New("QEMU with KVM ended without running the boot sector")
}
