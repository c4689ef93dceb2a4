package serve

import (
	"os"
	"sync"
	"time"

	"gitlab-sardine-executor/executor/config"
)

// settingsPoll is how often the settings file is checked for a change.
const settingsPoll = 5 * time.Second

// Current are the settings that apply now. It is safe for concurrent use.
type Current struct {
	load    func() (*config.Settings, error)
	mu      sync.Mutex
	value   *config.Settings
	file    os.FileInfo // as it was read; nil without a file
	changed chan struct{}
}

// NewCurrent reads the settings with load, which is called again at each reload.
func NewCurrent(load func() (*config.Settings, error)) (*Current, error) {
	c := &Current{load: load, changed: make(chan struct{})}
	s, err := load()
	if err != nil {
		return nil, err
	}
	c.value, c.file = s, stat(s.Path)
	return c, nil
}

// Get returns the settings. They do not change: a reload replaces them.
func (c *Current) Get() *config.Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value
}

// Changed returns a channel that is closed when the settings have been replaced.
func (c *Current) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// reload reads the settings again. ignored are the keys that have changed and apply after a
// restart only: they keep their values.
func (c *Current) reload() (ignored []string, err error) {
	c.mu.Lock()
	file := stat(c.value.Path) // before it is read: a later change is seen
	old := c.value
	c.mu.Unlock()
	s, err := c.load()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file = file
	if err != nil {
		return nil, err
	}
	ignored = keepFixed(old, s)
	c.value = s
	close(c.changed)
	c.changed = make(chan struct{})
	return ignored, nil
}

// keepFixed copies the settings that serve cannot change while it runs: where the machines
// have their files, and where it listens.
func keepFixed(old, s *config.Settings) (changed []string) {
	for _, fixed := range []struct {
		key     string
		old     string
		current *string
	}{
		{"storage", old.Defaults.Storage, &s.Defaults.Storage},
		{"image_dir", old.Defaults.ImageDir, &s.Defaults.ImageDir},
		{"overlay_dir", old.Defaults.OverlayDir, &s.Defaults.OverlayDir},
		{"serve.listen", old.Serve.Listen, &s.Serve.Listen},
		{"serve.nesting_socket", old.Serve.NestingSocket, &s.Serve.NestingSocket},
		{"serve.nesting_group", old.Serve.NestingGroup, &s.Serve.NestingGroup},
	} {
		if *fixed.current != fixed.old {
			changed = append(changed, fixed.key)
			*fixed.current = fixed.old
		}
	}
	if s.Serve.Nesting != old.Serve.Nesting {
		changed = append(changed, "serve.nesting")
		s.Serve.Nesting = old.Serve.Nesting
	}
	return changed
}

// fileChanged reports whether the settings file is another than the one that was read.
func (c *Current) fileChanged() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := stat(c.value.Path)
	if now == nil || c.file == nil {
		return now != nil // an editor may be replacing it
	}
	return !os.SameFile(now, c.file) || now.Size() != c.file.Size() || !now.ModTime().Equal(c.file.ModTime())
}

func stat(path string) os.FileInfo {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return info
}
