package config

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Dirs are the directories that the driver works in, all absolute.
type Dirs struct {
	Layouts  string // OCI layouts, by repository
	Store    string // unpacked images
	Overlays string // overlays and snapshots of machines
	Jobs     string // one directory for each job's machine
	Caches   string // caches that jobs leave to later jobs
	Tools    string // disks with programs of this host for guests
	Consoles string // console logs of guests that did not start
}

// Dirs returns the directories of these settings.
func (s *Settings) Dirs() (Dirs, error) {
	root := s.Defaults.Storage
	if root == "" {
		var err error
		if root, err = defaultStorage(); err != nil {
			return Dirs{}, err
		}
	}
	dirs := Dirs{
		Layouts:  cmp.Or(s.Defaults.LayoutDir, filepath.Join(root, "oci")),
		Store:    cmp.Or(s.Defaults.ImageDir, root),
		Overlays: cmp.Or(s.Defaults.OverlayDir, filepath.Join(root, "clones")),
		Jobs:     filepath.Join(root, "jobs"),
		Caches:   cmp.Or(s.Defaults.CacheDir, filepath.Join(root, "caches")),
		Tools:    filepath.Join(root, "tools"),
		Consoles: filepath.Join(root, "consoles"),
	}
	for _, dir := range []string{dirs.Layouts, dirs.Store, dirs.Overlays, dirs.Jobs, dirs.Caches, dirs.Tools, dirs.Consoles} {
		if !filepath.IsAbs(dir) {
			return Dirs{}, fmt.Errorf("%w: %q is not an absolute path", ErrSettings, dir)
		}
	}
	return dirs, nil
}

// Snapshots is the directory of all snapshots, named after the keys of their
// images. They are overlays, and so lie beside the others.
func (d Dirs) Snapshots() string { return filepath.Join(d.Overlays, "snapshots") }

// Snapshot is the directory for the snapshots of the image with a key in the store. The
// digest alone would not do: what was made of one manifest can differ.
func (d Dirs) Snapshot(imageKey string) string {
	return filepath.Join(d.Snapshots(), SnapshotName(imageKey))
}

// SnapshotName is the name of the directory for the snapshots of an image: its key in the
// store, without the algorithm of the digest.
func SnapshotName(imageKey string) string {
	_, name, _ := strings.Cut(imageKey, "-")
	return name
}

// Job is the directory of the machine with that name.
func (d Dirs) Job(machine string) string { return filepath.Join(d.Jobs, machine) }

// defaultStorage is /var/lib/gitlab-sardine-executor for root and the user's
// data directory (XDG base directory specification) for others.
func defaultStorage() (string, error) {
	const name = "gitlab-sardine-executor"
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib", name), nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("%w: no directory for storage: set storage, XDG_DATA_HOME or HOME: %w", ErrSettings, err)
	}
	return filepath.Join(home, ".local", "share", name), nil
}
