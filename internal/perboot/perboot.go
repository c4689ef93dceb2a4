// Package perboot caches what was found out about this host until it boots again.
package perboot

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// A Cache is a file with one fact about this host. It holds until the host boots again:
// another kernel may behave differently.
type Cache struct {
	path string // empty: nothing is kept
}

// In is the cache of that name in the directory dir; an empty dir keeps nothing.
func In(dir, name string) Cache {
	if dir == "" {
		return Cache{}
	}
	return Cache{filepath.Join(dir, name)}
}

// Read returns the text, its age, and whether it is of this boot.
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

// Write keeps text. It reports no error: without the file the next process finds out
// again.
func (c Cache) Write(text string) {
	if c.path != "" {
		_ = renameio.WriteFile(c.path, []byte(bootID()+"\n"+text), 0o600)
	}
}

// bootID is the kernel's name for the time since it booted (random(4)).
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
