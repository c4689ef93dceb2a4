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
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/kvm"
)

// doctorTimeout bounds each question that doctor asks.
const doctorTimeout = 20 * time.Second

// lowSpace is the free space, in bytes, below which doctor warns.
const lowSpace = 10 << 30

// A Finding is what [Doctor] says about one part of the host.
type Finding struct {
	// Part of the host: "libvirt", "KVM".
	Part string
	// Level is how bad it is.
	Level Level
	// Text says what was found and, unless it is good, what to do.
	Text string
}

// A Level says how bad a finding is.
type Level int

const (
	// Good: nothing to do.
	Good Level = iota
	// Worse: jobs run, but slower or less protected than they could.
	Worse
	// Broken: no job can run.
	Broken
)

func (l Level) String() string { return [...]string{"ok", "warning", "broken"}[l] }

// Doctor looks at everything on this host that a job needs, in the order in which
// a job needs it.
func Doctor(ctx context.Context, s *config.Settings) []Finding {
	d := &doctor{settings: s}
	d.settingsFile()
	dirs, err := s.Dirs()
	if err != nil {
		d.say("storage", Broken, "%v", err)
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

func (d *doctor) say(part string, level Level, format string, args ...any) {
	d.findings = append(d.findings, Finding{part, level, joblog.OneLine(fmt.Sprintf(format, args...))})
}

func (d *doctor) settingsFile() {
	if d.settings.Path == "" {
		d.say("settings", Good, "no file, every setting has its default")
		return
	}
	d.say("settings", Good, "%s", d.settings.Path)
	for _, alias := range d.settings.Aliases() {
		d.say("settings", Worse, "%s is an old name: write %s", alias.Old, alias.New)
	}
	info, err := os.Stat(d.settings.Path)
	if err == nil && info.Mode().Perm()&0o044 != 0 && len(d.settings.Passwords()) > 0 {
		d.say("settings", Worse, "other users of this host can read the passwords in %s (chmod 600)", d.settings.Path)
	}
}

// storage looks whether there is room, and whether this user may use it.
func (d *doctor) storage(dirs config.Dirs) {
	if _, err := oci.OpenStore(dirs.Store); err != nil {
		d.say("storage", Broken, "%v", err)
		return
	}
	for _, dir := range []string{dirs.Store, filepath.Dir(dirs.Overlays)} {
		var fs unix.Statfs_t
		if err := unix.Access(dir, unix.W_OK); err != nil {
			d.say("storage", Broken, "this user may not write to %s: %v", dir, err)
			return
		}
		if err := unix.Statfs(dir, &fs); err != nil {
			d.say("storage", Worse, "no telling how much room there is in %s: %v", dir, err)
			return
		}
		free := fs.Bavail * uint64(fs.Bsize)
		level, advice := Good, ""
		if free < lowSpace {
			level, advice = Worse, ": little, for images and what jobs write (prune removes images)"
		}
		d.say("storage", level, "%s free in %s%s", units.BytesSize(float64(free)), dir, advice)
		if dirs.Store == filepath.Dir(dirs.Overlays) {
			return
		}
	}
}

// written looks whether this user can write the file of a setting; replaced says that
// it is replaced by another each time, and so wants a directory to write to. No file
// is made: it would be this user's, who may not be the runner's.
func (d *doctor) written(setting, path string, replaced bool) {
	if path == "" {
		return
	}
	// A directory with a slash: the kernel takes nothing else for it.
	directory := filepath.Dir(path) + "/"
	needs := map[string]uint32{}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		d.say(setting, Worse, "jobs run, but nothing is written to %s: it is a directory", path)
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
			d.say(setting, Worse, "jobs run, but nothing is written to %s: this user may not write to %s (%v)", path, where, err)
			return
		}
	}
	d.say(setting, Good, "%s", path)
}

// snapshots looks whether machines can start from snapshots where the settings want
// that; system says that libvirt is the system's.
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
		if r.Network != vm.UserNetwork {
			needs = append(needs, fmt.Sprintf("machines%s boot, for it needs network = %q, and theirs is %q", of, vm.UserNetwork, r.Network))
		}
		if r.Cache != config.CacheNone {
			needs = append(needs, fmt.Sprintf("machines%s boot, for it needs cache = %q, and theirs is %q", of, config.CacheNone, r.Cache))
		}
	}
	if wanted && system && os.Geteuid() != 0 {
		needs = append(needs, "machines boot, for only root may read what the system's libvirt saves, and this user is not root")
	}
	for _, text := range needs {
		d.say("memory_snapshot", Worse, "%s", text)
	}
	if wanted && len(needs) == 0 {
		d.say("memory_snapshot", Good, "machines start from others that have booted, if image and domain allow it")
	}
}

func (d *doctor) programs() {
	for _, program := range []struct {
		name, text string
		missing    Level
	}{
		{"qemu-img", "makes the overlays of machines (Debian: qemu-utils)", Broken},
		{"passt", "connects guests of network user; without it QEMU's own lets them reach this host's loopback (Debian: passt)", Worse},
		{"gitlab-runner", "is copied into guests that have none, for artifacts and cache", Worse},
	} {
		if path, err := exec.LookPath(program.name); err == nil {
			d.say(program.name, Good, "%s", path)
		} else {
			d.say(program.name, program.missing, "not found; it %s", program.text)
		}
	}
}

// libvirt connects and looks at the network.
func (d *doctor) libvirt(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, d.settings)
	if err != nil {
		d.say("libvirt", Broken, "%v", err)
		return
	}
	defer host.Close()
	size, err := host.Size(ctx)
	if err != nil {
		d.say("libvirt", Broken, "%v", err)
		return
	}
	d.say("libvirt", Good, "%s: %d CPUs, %s of memory", host.URI(), size.CPUs, units.BytesSize(float64(size.Memory)))
	d.caches(host)
	d.snapshots(host.System())
	network := d.settings.For("").Network
	if network == vm.UserNetwork {
		d.say("network", Good, "user: a private one for each guest")
		return
	}
	if err := host.CheckNetwork(ctx, network); err != nil {
		d.say("network", Broken, "%v", err)
		return
	}
	d.say("network", Good, "%s, of libvirt", network)
}

// caches looks whether machines here can have the caches that the settings want.
func (d *doctor) caches(host *vm.Host) {
	everywhere, somewhere := false, false
	for match, r := range d.settings.All() {
		share := r.Cache == config.CacheShare
		everywhere = everywhere || share && match == ""
		somewhere = somewhere || share
	}
	if !somewhere {
		return
	}
	err := cache.CheckShares(host.Host)
	switch {
	case err == nil:
		d.say("cache", Good, "share: by virtiofs")
	case everywhere:
		d.say("cache", Broken, "%v", err)
	default:
		d.say("cache", Worse, "images that want a share cannot be used: %v", err)
	}
}

func (d *doctor) kvm(ctx context.Context, dirs config.Dirs) {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	err := kvm.Probe(ctx, dirs.Jobs)
	switch {
	case err == nil:
		d.say("KVM", Good, "a boot sector ran on it")
	case errors.Is(err, os.ErrNotExist):
		d.say("KVM", Worse, "this host has none (/dev/kvm): machines are emulated, many times slower")
	case errors.Is(err, os.ErrPermission):
		d.say("KVM", Worse, "this user may not use /dev/kvm (usermod -aG kvm USER): machines are emulated, many times slower")
	default:
		d.say("KVM", Worse, "%v: machines are emulated, many times slower", err)
	}
}
