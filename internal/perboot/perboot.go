// Package perboot caches facts about this host until it reboots.
package perboot

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// A Cache is a file with one fact about this host. It is valid until the host reboots:
// another kernel may behave differently.
type Cache struct {
	path string // empty: nothing is cached
}

// In returns the cache of that name in the directory dir. If dir is empty, nothing is
// cached.
func In(dir, name string) Cache {
	if dir == "" {
		return Cache{}
	}
	return Cache{filepath.Join(dir, name)}
}

// Read returns the text and its age; ok is false if there is none since the boot.
func (c Cache) Read() (text string, age time.Duration, ok bool) {
	if c.path == "" {
		return "", 0, false
	}
	known, err := os.ReadFile(c.path)
	if err != nil {
		return "", 0, false
	}
	info, err := os.Stat(c.path)
	if err != nil {
		return "", 0, false
	}
	id, text, _ := strings.Cut(string(known), "\n")
	return text, time.Since(info.ModTime()), id == bootID()
}

// Write stores text. It ignores errors: without the file, the next process finds the fact
// out again.
func (c Cache) Write(text string) {
	if c.path != "" {
		_ = renameio.WriteFile(c.path, []byte(bootID()+"\n"+text), 0o600)
	}
}

// bootID is the kernel's ID of this boot (random(4)).
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
