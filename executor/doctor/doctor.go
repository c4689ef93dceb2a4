// Package doctor checks what jobs need on this host, and says how to mend what is missing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/kvm"
	"gitlab-sardine-executor/vm/virt"
)

// timeout bounds each check.
const timeout = 20 * time.Second

// A Finding is the result of one check. The names of its JSON fields are stable.
type Finding struct {
	// Part of the host: "libvirt", "KVM".
	Part string `json:"part"`
	// Level is the severity: "ok", "warning" or "error".
	Level Level `json:"level"`
	// Text says what was found, in one line, and what follows from it.
	Text string `json:"text"`
	// Command mends it, run as root unless it says otherwise; empty if there is nothing to
	// do, or no command for it.
	Command string `json:"command,omitempty"`
}

// A Level is the severity of a finding.
type Level int

const (
	// OK: nothing to do.
	OK Level = iota
	// Warning: jobs run, but slower or less protected than they could, or some fail.
	Warning
	// Error: no job can run.
	Error
)

func (l Level) String() string { return [...]string{"ok", "warning", "error"}[l] }

// MarshalText writes the level as a word.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Examine checks what a job needs on this host, in the order in which a job needs it.
func Examine(ctx context.Context, s *config.Settings) []Finding {
	d := &doctor{settings: s}
	d.settingsFile()
	dirs, err := s.Dirs()
	if err != nil {
		d.add("storage", Error, "%v", err)
		return d.findings
	}
	d.storage(dirs)
	d.written("log_file", s.Defaults.LogFile, false)
	d.written("metrics_textfile", s.Defaults.MetricsTextfile, true)
	d.programs()
	size := d.libvirt(ctx, dirs)
	d.kvm(ctx, dirs)
	d.clock()
	d.runner(ctx, size)
	d.user()
	return d.findings
}

type doctor struct {
	settings *config.Settings
	findings []Finding
}

func (d *doctor) add(part string, level Level, format string, args ...any) {
	d.advise(part, level, "", format, args...)
}

// advise adds a finding with the command that mends it.
func (d *doctor) advise(part string, level Level, command, format string, args ...any) {
	d.findings = append(d.findings, Finding{part, level, joblog.OneLine(fmt.Sprintf(format, args...)), joblog.OneLine(command)})
}

func (d *doctor) settingsFile() {
	path := d.settings.Path
	if path == "" {
		d.add("settings", OK, "no file; every setting has its default")
		return
	}
	d.add("settings", OK, "%s", path)
	for _, alias := range d.settings.Aliases() {
		d.advise("settings", Warning, fmt.Sprintf("sed -i 's/^\\(\\s*\\)%s\\b/\\1%s/' %s", alias.Old, alias.New, quote(path)),
			"%s is an old name; rename it to %s", alias.Old, alias.New)
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o044 != 0 && len(d.settings.Passwords()) > 0 {
		d.advise("settings", Warning, "chmod 600 "+quote(path), "other users of this host can read the passwords in %s", path)
	}
}

// snapshots checks whether machines can start from snapshots where the settings want
// that; system says that it is qemu:///system.
func (d *doctor) snapshots(system bool) {
	wanted, needs := false, []string(nil)
	for match, r := range d.settings.All() {
		if !r.MemorySnapshot {
			continue
		}
		wanted = true
		of := ""
		if match != "" {
			of = " of " + match
		}
		if r.Network != config.UserNetwork {
			needs = append(needs, fmt.Sprintf("machines%s boot: memory_snapshot needs network = %q, and theirs is %q", of, config.UserNetwork, r.Network))
		}
		if r.Cache != config.CacheNone {
			needs = append(needs, fmt.Sprintf("machines%s boot: memory_snapshot needs cache = %q, and theirs is %q", of, config.CacheNone, r.Cache))
		}
	}
	if wanted && system && os.Geteuid() != 0 {
		needs = append(needs, "machines boot: only root can read the files that qemu:///system saves")
	}
	for _, text := range needs {
		d.add("memory_snapshot", Warning, "%s", text)
	}
	if wanted && len(needs) == 0 {
		d.add("memory_snapshot", OK, "machines start from snapshots, if image and domain allow it")
	}
}

func (d *doctor) programs() {
	for _, program := range []struct {
		name, text, command string
		missing             Level
	}{
		{"qemu-img", "creates the overlays of machines", "apt install qemu-utils", Error},
		{"passt", "connects guests with network = \"user\"; without it QEMU's slirp lets them reach this host's loopback", "apt install passt", Warning},
		{"gitlab-runner", "is given to guests, for artifacts and cache", "", Warning},
	} {
		if path, err := exec.LookPath(program.name); err == nil {
			d.add(program.name, OK, "%s", path)
		} else {
			d.advise(program.name, program.missing, program.command, "not found; it %s", program.text)
		}
	}
}

// libvirt checks the connection, and what needs it. It returns the size of the host; 0 if it is
// not known.
func (d *doctor) libvirt(ctx context.Context, dirs config.Dirs) (size virt.HostSize) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, d.settings)
	if err != nil {
		command := ""
		if os.Geteuid() == 0 {
			command = "systemctl enable --now libvirtd"
		}
		d.advise("libvirt", Error, command, "%v", err)
		return size
	}
	defer host.Close()
	if size, err = host.Size(ctx); err != nil {
		d.add("libvirt", Error, "%v", err)
		return size
	}
	d.add("libvirt", OK, "%s: %d CPUs, %s of memory", host.URI(), size.CPUs, units.BytesSize(float64(size.Memory)))
	d.reach(ctx, host, dirs)
	d.sockets(host)
	d.firmware(ctx, host)
	d.caches(host)
	d.snapshots(host.System())
	d.networks(ctx, host)
	d.leftovers(ctx, host, dirs)
	d.service(d.settings, dirs)
	return size
}

// caches checks whether machines can have the caches that the settings want.
func (d *doctor) caches(host *virt.Host) {
	everywhere, somewhere := false, false
	for match, r := range d.settings.All() {
		share := r.Cache == config.CacheShare
		everywhere = everywhere || share && match == ""
		somewhere = somewhere || share
	}
	if !somewhere {
		return
	}
	err := cache.CheckShares(host)
	switch {
	case err == nil:
		d.add("cache", OK, "share: virtiofs works")
	case everywhere:
		d.add("cache", Error, "%v", err)
	default:
		d.add("cache", Warning, "images with cache = \"share\" cannot run: %v", err)
	}
}

func (d *doctor) kvm(ctx context.Context, dirs config.Dirs) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := kvm.Probe(ctx, dirs.Jobs)
	switch {
	case err == nil:
		d.add("KVM", OK, "a boot sector ran on it")
	case errors.Is(err, os.ErrNotExist):
		d.advise("KVM", Warning, "modprobe kvm_intel || modprobe kvm_amd", "this host has no /dev/kvm: machines are emulated, many times slower")
	case errors.Is(err, os.ErrPermission):
		d.advise("KVM", Warning, "usermod -aG kvm "+quote(currentUser()), "this user cannot open /dev/kvm: machines are emulated, many times slower")
	default:
		d.add("KVM", Warning, "%v: machines are emulated, many times slower", err)
	}
}

// written checks whether this user can write the file of a setting. replaced says that
// each write replaces the file, which needs a writable directory. It does not create
// the file: the owner might not be the user that runs GitLab Runner.
func (d *doctor) written(setting, path string, replaced bool) {
	if path == "" {
		return
	}
	// With a slash at the end the kernel accepts only a directory.
	directory := filepath.Dir(path) + "/"
	needs := map[string]uint32{}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		d.add(setting, Warning, "jobs run, but nothing is written to %s: it is a directory", path)
		return
	case err == nil && !replaced:
		needs[path] = unix.W_OK
	default:
		needs[directory] = unix.W_OK | unix.X_OK
	}
	if _, err := os.Stat(path + lockSuffix); err == nil && replaced {
		needs[path+lockSuffix] = unix.R_OK | unix.W_OK
	}
	for where, mode := range needs {
		if err := unix.Access(where, mode); err != nil {
			d.advise(setting, Warning, fmt.Sprintf("chown %s %s", quote(currentUser()), quote(filepath.Clean(where))),
				"jobs run, but nothing is written to %s: this user cannot write to %s (%v)", path, where, err)
			return
		}
	}
	d.add(setting, OK, "%s", path)
}
