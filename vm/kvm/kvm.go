// Package kvm finds out whether guests can run on the processor of this host.
package kvm

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

	"gitlab-sardine-executor/internal/perboot"
)

const (
	// probeTimeout is far more than a working KVM needs (a tenth of a second).
	// Where nested virtualisation is emulated badly, /dev/kvm opens and the
	// simplest guest takes seconds, or for ever.
	probeTimeout = 2 * time.Second
	// probeExit is the status of a QEMU whose guest wrote 0x10 to the port of
	// isa-debug-exit: (value << 1) | 1.
	probeExit = 0x10<<1 | 1
	// doubt is how long it is believed that KVM does not work: the host may have been
	// too busy for the probe, or its administrator has mended it.
	doubt = 10 * time.Minute
)

// Works says whether guests can run on this host's processor. The only test
// that can be believed is to boot one: a boot sector that ends QEMU by writing
// to a port. Its outcome is kept in the directory cache: until the host boots
// again if KVM works, for some minutes if not. An empty cache keeps nothing. The
// error says why KVM does not work.
func Works(ctx context.Context, cache string) error {
	note := outcome(cache)
	if reason, age, known := note.Read(); known && (reason == "" || age < doubt) {
		return reasonError(reason)
	}
	return Probe(ctx, cache)
}

// Probe is [Works] for who does not believe what was found out before.
func Probe(ctx context.Context, cache string) error {
	if runtime.GOARCH != "amd64" {
		return deviceOpens()
	}
	err := probe(ctx)
	if ctx.Err() == nil {
		reason := ""
		if err != nil {
			reason = err.Error()
		}
		outcome(cache).Write(reason)
	}
	return err
}

func outcome(cache string) perboot.Cache {
	return perboot.In(cache, fmt.Sprintf("kvm-%d", os.Geteuid()))
}

func reasonError(reason string) error {
	if reason == "" {
		return nil
	}
	return errors.New(reason)
}

// device is another in tests.
var device = "/dev/kvm"

func deviceOpens() error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// bootSector is a boot sector: mov al, 0x10; out 0xf4, al; then halt for ever.
var bootSector = append(append([]byte{0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd}, make([]byte, 503)...), 0x55, 0xaa)

func probe(ctx context.Context) error {
	if err := deviceOpens(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sardine-kvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sector := filepath.Join(dir, "boot")
	if err := os.WriteFile(sector, bootSector, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
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
		return fmt.Errorf("a boot sector did not finish within %s", probeTimeout)
	case errors.As(err, &exit) && exit.ExitCode() == probeExit:
		return nil
	case err != nil:
		return fmt.Errorf("QEMU with KVM: %w", err)
	}
	return errors.New("QEMU with KVM ended without running the boot sector")
}
