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
	"syscall"
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
	// kvmDoubt is how long it is believed that KVM does not work: the host may have been
	// too busy for the probe, or its administrator has mended it.
	kvmDoubt = 10 * time.Minute
)

// KVMWorks says whether guests can run on this host's processor. The only test
// that can be believed is to boot one: a boot sector that ends QEMU by writing
// to a port. Its outcome is kept in the directory cache: until the host boots
// again if KVM works, for some minutes if not. An empty cache keeps nothing. The
// error says why KVM does not work.
func KVMWorks(ctx context.Context, cache string) error {
	note := kvmNote(cache)
	if reason, age, known := note.read(); known && (reason == "" || age < kvmDoubt) {
		return reasonError(reason)
	}
	return ProbeKVM(ctx, cache)
}

// ProbeKVM is [KVMWorks] for who does not believe what was found out before.
func ProbeKVM(ctx context.Context, cache string) error {
	if runtime.GOARCH != "amd64" {
		return kvmOpens()
	}
	err := probeKVM(ctx)
	if ctx.Err() == nil {
		reason := ""
		if err != nil {
			reason = err.Error()
		}
		kvmNote(cache).write(reason)
	}
	return err
}

func kvmNote(cache string) bootNote { return noteIn(cache, fmt.Sprintf("kvm-%d", os.Geteuid())) }

func reasonError(reason string) error {
	if reason == "" {
		return nil
	}
	return errors.New(reason)
}

// kvmDevice is another in tests.
var kvmDevice = "/dev/kvm"

func kvmOpens() error {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
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
	// A guest that hangs ends with us; with the thread that started it, to be exact.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
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
