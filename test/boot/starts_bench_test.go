//go:build boot

package boot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/toolsdisk"
	"gitlab-sardine-executor/vm/virt"
)

// BenchmarkStartsSideBySide measures the time from an image to a started domain of eight
// machines that start at once, and of one alone, in turn. Their ratio says how much the
// starts wait for each other; more processors do not change what waits for a lock.
//
// Both have the same load, since eight guests share the processors: a machine that starts
// alone does so beside seven guests that keep their virtual processors busy, as the guests
// of those that start at once do as soon as they run.
func BenchmarkStartsSideBySide(b *testing.B) {
	for _, test := range []struct {
		name, network string
		cache         bool
	}{
		{"network=user", network.User, false}, {"network=default", "default", false}, {"network=user,cache=disk", network.User, true},
	} {
		b.Run(test.name, func(b *testing.B) {
			l := benchLab(b)
			busy := variant{
				arguments: "rdinit=/usr/bin/busy",
				files:     map[string]string{"usr/bin/busy": "#!/usr/bin/busybox sh\nwhile :; do :; done\n"},
			}.of(b, l)
			s := &sideBySide{lab: l, change: func(spec *vm.Spec) {
				busy(spec)
				spec.Network = test.network
				if test.cache {
					spec.Cache = &cache.Config{Mode: cache.Disk, Dir: filepath.Join(l.dir, "caches"), Key: strings.Repeat("0", 32), Owner: "group/project", Size: 64 << 20}
				}
			}}
			s.start(b, 8) // reserves the addresses, which later machines find reserved
			var alone, atOnce []time.Duration
			for b.Loop() {
				for range 3 {
					atOnce = append(atOnce, s.start(b, 8)...)
					alone = append(alone, s.startBeside(b, 7))
				}
			}
			one, eight := median(alone), median(atOnce)
			b.ReportMetric(float64(one.Milliseconds()), "ms-alone")
			b.ReportMetric(float64(eight.Milliseconds()), "ms-at-once")
			b.ReportMetric(float64(eight)/float64(one), "ratio")
			b.ReportMetric(float64(s.waits.Load()), "waits-for-room")
		})
	}
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

type sideBySide struct {
	lab    *lab
	change func(*vm.Spec)
	made   atomic.Int64
	waits  atomic.Int64 // how often a machine said that it waits for room
}

// start starts machines at once, each as a driver of its own would, and returns how long each
// took. They are gone when it returns.
func (s *sideBySide) start(b *testing.B, machines int) []time.Duration {
	times := make([]time.Duration, machines)
	ends := make([]func(), machines)
	var all sync.WaitGroup
	for i := range machines {
		all.Go(func() { times[i], ends[i] = s.startOne(b) })
	}
	all.Wait()
	for _, end := range ends {
		all.Go(end)
	}
	all.Wait()
	return times
}

// startBeside starts a machine beside others that are running.
func (s *sideBySide) startBeside(b *testing.B, others int) time.Duration {
	for range others {
		_, end := s.startOne(b)
		defer end()
	}
	took, end := s.startOne(b)
	end()
	return took
}

func (s *sideBySide) startOne(b *testing.B) (took time.Duration, end func()) {
	host, err := virt.Open(b.Context(), s.lab.host.URI())
	if err != nil {
		b.Error(err)
		return 0, func() {}
	}
	spec := s.lab.spec(fmt.Sprintf("side-%d", s.made.Add(1)), s.change)
	spec.Admission = admission.Policy{Slots: 100, Timeout: time.Minute, Waiting: func(string) { s.waits.Add(1) }}
	began := time.Now()
	_, err = vm.Start(b.Context(), host, spec)
	took = time.Since(began)
	if err != nil {
		b.Error(err)
	}
	return took, func() {
		if err := removal.Remove(context.WithoutCancel(b.Context()), host, spec.Name, spec.Place); err != nil {
			b.Error(err)
		}
		host.Close()
	}
}

// BenchmarkToolsDisk measures how much longer a guest takes from its start to the login with
// a disk of 94 MiB for programs of the host, in turn with guests that have none; and how
// long it takes to make the disk.
func BenchmarkToolsDisk(b *testing.B) {
	l := benchLab(b)
	runner := filepath.Join(l.dir, "gitlab-runner")
	if err := os.WriteFile(runner, bytes.Repeat([]byte("#!/bin/sh\n"), 94<<20/10), 0o755); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	path, err := toolsdisk.Make(filepath.Join(l.dir, "tools"), []toolsdisk.Program{{Name: "gitlab-runner", Path: runner}})
	if err != nil {
		b.Fatal(err)
	}
	making := time.Since(began)
	var times [2][]time.Duration
	disks := [2]*toolsdisk.Disk{nil, {Path: path}}
	for n := 0; b.Loop(); n++ {
		for i := range 10 {
			spec := l.spec(fmt.Sprintf("tools-%d-%d", n, i), func(s *vm.Spec) { s.Tools = disks[i%2]; s.Network = network.User })
			began := time.Now()
			guest := l.start(b, spec)
			if guest.HasTools() != (i%2 == 1) {
				b.Fatalf("machine %d has a tools disk: %v", i, guest.HasTools())
			}
			if err := waitReady(b, guest, guestLogin); err != nil {
				b.Fatal(err)
			}
			times[i%2] = append(times[i%2], time.Since(began))
			guest.Close()
			l.virsh(b, "destroy", spec.Name)
		}
	}
	without, with := median(times[0]), median(times[1])
	b.ReportMetric(float64(without.Milliseconds()), "ms-without")
	b.ReportMetric(float64(with.Milliseconds()), "ms-with")
	b.ReportMetric(float64(making.Milliseconds()), "ms-to-make")
}
