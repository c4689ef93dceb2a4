package admin

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
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/kvm"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/virt"
)

// doctorTimeout bounds each check.
const doctorTimeout = 20 * time.Second

// lowSpace is the free space, in bytes, below which doctor warns.
const lowSpace = 10 << 30

// A Finding is the result of one check of [Doctor].
type Finding struct {
	// Part of the host: "libvirt", "KVM".
	Part string
	// Level is the severity.
	Level Level
	// Text says what was found and, unless the level is OK, what to do.
	Text string
}

// A Level is the severity of a finding.
type Level int

const (
	// OK: nothing to do.
	OK Level = iota
	// Warning: jobs run, but slower or less protected than they could.
	Warning
	// Error: no job can run.
	Error
)

func (l Level) String() string { return [...]string{"ok", "warning", "error"}[l] }

// Doctor checks what a job needs on this host, in the order in which a job needs it.
func Doctor(ctx context.Context, s *config.Settings) []Finding {
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
	d.libvirt(ctx)
	d.kvm(ctx, dirs)
	return d.findings
}

type doctor struct {
	settings *config.Settings
	findings []Finding
}

func (d *doctor) add(part string, level Level, format string, args ...any) {
	d.findings = append(d.findings, Finding{part, level, joblog.OneLine(fmt.Sprintf(format, args...))})
}

func (d *doctor) settingsFile() {
	if d.settings.Path == "" {
		d.add("settings", OK, "no file; every setting has its default")
		return
	}
	d.add("settings", OK, "%s", d.settings.Path)
	for _, alias := range d.settings.Aliases() {
		d.add("settings", Warning, "%s is an old name; rename it to %s", alias.Old, alias.New)
	}
	info, err := os.Stat(d.settings.Path)
	if err == nil && info.Mode().Perm()&0o044 != 0 && len(d.settings.Passwords()) > 0 {
		d.add("settings", Warning, "other users of this host can read the passwords in %s (chmod 600)", d.settings.Path)
	}
}

// storage checks free space and permissions.
func (d *doctor) storage(dirs config.Dirs) {
	if _, err := store.Open(dirs.Store); err != nil {
		d.add("storage", Error, "%v", err)
		return
	}
	for _, dir := range []string{dirs.Store, filepath.Dir(dirs.Overlays)} {
		var fs unix.Statfs_t
		if err := unix.Access(dir, unix.W_OK); err != nil {
			d.add("storage", Error, "this user cannot write to %s: %v", dir, err)
			return
		}
		if err := unix.Statfs(dir, &fs); err != nil {
			d.add("storage", Warning, "cannot find out the free space in %s: %v", dir, err)
			return
		}
		free := fs.Bavail * uint64(fs.Bsize)
		level, advice := OK, ""
		reserve := space.Reserve(d.settings.Defaults.StorageReserve).Of(int64(fs.Blocks) * fs.Bsize)
		switch {
		case dir == dirs.Store && free < uint64(reserve):
			level, advice = Warning, fmt.Sprintf(": no image can be pulled, for storage_reserve is %s here (prune removes images)", units.BytesSize(float64(reserve)))
		case free < lowSpace:
			level, advice = Warning, ": too little for images and overlays (prune removes images)"
		}
		d.add("storage", level, "%s free in %s%s", units.BytesSize(float64(free)), dir, advice)
		if dirs.Store == filepath.Dir(dirs.Overlays) {
			return
		}
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
	if _, err := os.Stat(path + metrics.LockSuffix); err == nil && replaced {
		needs[path+metrics.LockSuffix] = unix.R_OK | unix.W_OK
	}
	for where, mode := range needs {
		if err := unix.Access(where, mode); err != nil {
			d.add(setting, Warning, "jobs run, but nothing is written to %s: this user cannot write to %s (%v)", path, where, err)
			return
		}
	}
	d.add(setting, OK, "%s", path)
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
		if r.Network != network.User {
			needs = append(needs, fmt.Sprintf("machines%s boot: memory_snapshot needs network = %q, and theirs is %q", of, network.User, r.Network))
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
		name, text string
		missing    Level
	}{
		{"qemu-img", "creates the overlays of machines (Debian: qemu-utils)", Error},
		{"passt", "connects guests with network = \"user\"; without it QEMU's slirp lets them reach this host's loopback (Debian: passt)", Warning},
		{"gitlab-runner", "is copied into guests that lack it, for artifacts and cache", Warning},
	} {
		if path, err := exec.LookPath(program.name); err == nil {
			d.add(program.name, OK, "%s", path)
		} else {
			d.add(program.name, program.missing, "not found; it %s", program.text)
		}
	}
}

// libvirt checks the connection and the network.
func (d *doctor) libvirt(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, d.settings)
	if err != nil {
		d.add("libvirt", Error, "%v", err)
		return
	}
	defer host.Close()
	size, err := host.Size(ctx)
	if err != nil {
		d.add("libvirt", Error, "%v", err)
		return
	}
	d.add("libvirt", OK, "%s: %d CPUs, %s of memory", host.URI(), size.CPUs, units.BytesSize(float64(size.Memory)))
	d.caches(host)
	d.snapshots(host.System())
	name := d.settings.For("").Network
	if name == network.User {
		d.add("network", OK, "user: a private network for each guest")
		return
	}
	if err := network.Check(ctx, host, name); err != nil {
		d.add("network", Error, "%v", err)
		return
	}
	d.add("network", OK, "libvirt network %s", name)
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
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	err := kvm.Probe(ctx, dirs.Jobs)
	switch {
	case err == nil:
		d.add("KVM", OK, "a boot sector ran on it")
	case errors.Is(err, os.ErrNotExist):
		d.add("KVM", Warning, "this host has no /dev/kvm: machines are emulated, many times slower")
	case errors.Is(err, os.ErrPermission):
		d.add("KVM", Warning, "this user cannot open /dev/kvm (usermod -aG kvm USER): machines are emulated, many times slower")
	default:
		d.add("KVM", Warning, "%v: machines are emulated, many times slower", err)
	}
}
