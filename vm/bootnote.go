package vm

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// A bootNote is something that was found out about this host and holds until the
// host boots again: another kernel may be another host.
type bootNote struct {
	path string // empty: nothing is kept
}

// noteIn is the note of that name in the directory dir; an empty dir keeps nothing.
func noteIn(dir, name string) bootNote {
	if dir == "" {
		return bootNote{}
	}
	return bootNote{filepath.Join(dir, name)}
}

// read returns the text of the note and its age, and whether there is one of this
// boot.
func (n bootNote) read() (text string, age time.Duration, ok bool) {
	if n.path == "" {
		return "", 0, false
	}
	known, err := os.ReadFile(n.path)
	if err != nil {
		return "", 0, false
	}
	info, err := os.Stat(n.path)
	if err != nil {
		return "", 0, false
	}
	id, text, _ := strings.Cut(string(known), "\n")
	return text, time.Since(info.ModTime()), id == bootID()
}

// write keeps text. Without the note the next one finds it out again, so that it
// is no reason to fail.
func (n bootNote) write(text string) {
	if n.path != "" {
		_ = renameio.WriteFile(n.path, []byte(bootID()+"\n"+text), 0o600)
	}
}

// bootID is the kernel's name for the time since it booted (random(4)).
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
