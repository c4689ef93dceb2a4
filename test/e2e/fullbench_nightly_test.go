//go:build boot && nightly

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// fullRounds of each measurement: a whole Debian takes long to boot.
const fullRounds = 3

// BenchmarkFullGuest measures prepare of a whole Debian: with an idle machine and from a snapshot,
// against a boot.
func BenchmarkFullGuest(b *testing.B) {
	mode := testbed.Session(b)
	s := newSite(b, mode)
	layout, err := export(b, testbed.FullGuest(b), mode.WriteFile(b, filepath.Join(mode.Dir(b), "vm.json"), "{}"))
	if err != nil {
		b.Fatal(err)
	}
	s.push(b, layout, s.registry.Image("vms/full:1"))
	s.image = s.registry.Image("vms/full:1")
	settings := []string{`cpus = 1`, `memory = "1GiB"`, `pull_policy = "if-not-present"`, `timeout = "15m"`}
	with := func(name string, more ...string) *site {
		other, installation := *s, *s.Site
		other.Site = &installation
		other.Config = filepath.Join(mode.Dir(b), name+".toml")
		other.Configure(b, append(more, settings...)...)
		return &other
	}
	sites := map[string]*site{
		"idle": s, "boot": with("boot", otherKind), "snapshot": with("snapshot", otherKind, `memory_snapshot = true`),
	}
	s.configureIdle(b, 1, settings...)
	times := map[string][]time.Duration{}
	v := s.serve(b)
	for b.Loop() {
		s.awaitIdle(b, 1)
		took := sites["snapshot"].timedPrepare(b, "snapshot")
		b.Logf("the job that makes the snapshot: %.3f s", took.Seconds())
		for range fullRounds {
			for _, name := range []string{"boot", "snapshot", "idle"} {
				s.awaitIdle(b, 1)
				times[name] = append(times[name], sites[name].timedPrepare(b, name))
			}
		}
	}
	for name, all := range times {
		b.Logf("%s: %v", name, all)
	}
	compare(b, times, "idle", "boot")
	compare(b, times, "snapshot", "boot")
	v.stop(b)
}

// timedPrepare makes the machine of a job, which must start in that way, and removes it.
func (s *site) timedPrepare(b *testing.B, from string) time.Duration {
	b.Helper()
	e := s.runner(b).Stage(b.Context(), s.job(""), "prepare")
	started := "boot"
	switch {
	case strings.Contains(e.Stderr, readyBefore):
		started = "idle"
	case strings.Contains(e.Stderr, "resumed from a snapshot"):
		started = "snapshot"
	}
	if e.ExitCode != 0 || started != from {
		b.Fatalf("want a machine from its %s: %s", from, e)
	}
	if e := s.runner(b).Stage(b.Context(), s.job(""), "cleanup"); e.ExitCode != 0 {
		b.Fatal(e)
	}
	return e.Duration + e.OutputDelay
}
