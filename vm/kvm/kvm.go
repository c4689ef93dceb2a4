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
	// probeTimeout is far longer than a working KVM needs (0.1 s). With badly emulated nested
	// virtualization, /dev/kvm opens and the simplest guest takes seconds, or hangs.
	probeTimeout = 2 * time.Second
	// probeExit is the status of a QEMU whose guest wrote 0x10 to the port of
	// isa-debug-exit: (value << 1) | 1.
	probeExit = 0x10<<1 | 1
	// doubt is how long a failed probe counts: the host may have been too busy for the probe,
	// or the administrator may have fixed it.
	doubt = 10 * time.Minute
)

// Works checks that KVM works on this host; the error says why it does not. The only
// reliable test is to boot a guest: a boot sector that ends QEMU by writing to a port. The
// result is cached in the directory cache, until the host reboots if KVM works and for some
// minutes if it does not. Without a cache directory nothing is cached.
func Works(ctx context.Context, cache string) error {
	note := outcome(cache)
	if reason, age, known := note.Read(); known && (reason == "" || age < doubt) {
		return reasonError(reason)
	}
	return Probe(ctx, cache)
}

// Probe is [Works] without the cached result. It updates the cache.
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

// device is a variable for tests.
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
	// Kill a guest that hangs when this process dies (or its thread, strictly speaking).
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
