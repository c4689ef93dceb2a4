package metrics

import (
	"fmt"
	"sync"
)

// Live are the metrics of one process that runs long. They are in memory, and safe for
// concurrent use. The zero value is ready to use.
type Live struct {
	mu       sync.Mutex
	families families
}

// Add adds the changes and clears them.
func (l *Live) Add(m *Changes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.families == nil {
		l.families = families{}
	}
	for _, change := range m.changes {
		change(l.families)
	}
	m.changes = nil
}

// Text returns the metrics in Prometheus' text format, with those in the file path that have
// other names; path may be empty.
func (l *Live) Text(path string) ([]byte, error) {
	all := families{}
	if path != "" {
		var err error
		if all, err = readFamilies(path); err != nil {
			return nil, fmt.Errorf("read metrics: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, family := range l.families {
		all[name] = family
	}
	return all.text()
}
