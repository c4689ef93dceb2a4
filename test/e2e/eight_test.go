//go:build boot

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// Eight machines run on one host at the same time, made at once of an image that is not
// there yet: it is pulled once, there is one base, and each guest is its own job's.
func TestEightGuestsAtOnce(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		const guests = 8
		s := newSite(t, mode)
		pushed := len(s.blobsSent(t))
		jobs := make([]gitlab.Job, guests)
		for i := range jobs {
			jobs[i] = s.job("")
			jobs[i].ID, jobs[i].Concurrent = int64(500+i), i
		}
		// each runs a stage of all jobs side by side.
		each := func(stage string, args func(i int) []string) []gitlab.Execution {
			results := make([]gitlab.Execution, guests)
			var all sync.WaitGroup
			for i, job := range jobs {
				runner, ctx, arguments := s.runner(t), deadline(t), args(i)
				all.Go(func() { results[i] = runner.Stage(ctx, job, stage, arguments...) })
			}
			all.Wait()
			for _, e := range results {
				if e.ExitCode != 0 || e.OutputHeld {
					t.Error(e)
				}
			}
			return results
		}
		none := func(int) []string { return nil }

		addresses := map[string]bool{}
		for _, prepare := range each("prepare", none) {
			if match := guestReady.FindStringSubmatch(prepare.Stderr); match != nil {
				addresses[match[1]] = true
			}
		}
		if len(addresses) != guests {
			t.Errorf("%d guests have the addresses %v", guests, addresses)
		}
		s.checkPulledOnce(t, pushed, guests)
		if running := strings.Fields(mode.Virsh(t, "list", "--name")); len(running) != guests {
			t.Errorf("%d machines run at once, want %d: %v", len(running), guests, running)
		}
		if bases, _ := filepath.Glob(filepath.Join(s.Storage, "images", "*", "*.qcow2")); len(bases) != 1 {
			t.Errorf("the guests stand on %v, want one base", bases)
		}
		// Whose guest it is, it keeps to itself: a second look finds what the first left.
		for look := range 2 {
			scripts := each("run", func(i int) []string {
				text := fmt.Sprintf("#!/usr/bin/env bash\necho %d >>/tmp/jobs; cat /tmp/jobs\n", jobs[i].ID)
				return []string{mode.WriteFile(t, filepath.Join(mode.Dir(t), "script"), text), gitlab.StageBuildScript}
			})
			for i, e := range scripts {
				if want := strings.Repeat(fmt.Sprintf("%d\n", jobs[i].ID), look+1); e.Stdout != want {
					t.Errorf("job %d finds %q in its guest, want %q", jobs[i].ID, e.Stdout, want)
				}
			}
		}
		each("cleanup", none)
	})
}

// checkPulledOnce wants the registry to have sent each blob once, not counting the first
// blobs of its log. A job that comes before the image is in the store reads the image's config to
// know what the store calls it.
func (s *site) checkPulledOnce(t *testing.T, before, jobs int) {
	t.Helper()
	sent := s.blobsSent(t)[before:]
	if len(sent) == 0 {
		t.Errorf("the registry has sent nothing:\n%s", s.registry.Log(t))
	}
	config := s.registry.Config(t, "vms/guest", "1")
	times := map[string]int{}
	for _, blob := range sent {
		times[blob]++
	}
	for blob, n := range times {
		if n != 1 && !(blob == config && n <= jobs) {
			t.Errorf("%s was sent %d times; the config is %s", blob, n, config)
		}
	}
}
