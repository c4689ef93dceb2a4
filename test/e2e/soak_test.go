//go:build boot && nightly

package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

var (
	soakFlag       = flag.Int("soak", 20, "run that many jobs one after another, and look for what piles up")
	soakAtOnceFlag = flag.Int("soak-at-once", 16, "run that many jobs, eight at a time, and look for what piles up")
)

// soakWidth is how many jobs run at once.
const soakWidth = 8

// TestSoak runs many jobs. Each has to end as it should; domains, files, ports and
// processes must be as before, and libvirt's daemon must not have more open files.
func TestSoak(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		t.Run("one after another", func(t *testing.T) { soak(t, mode, *soakFlag, 1) })
		t.Run("eight at a time", func(t *testing.T) { soak(t, mode, *soakAtOnceFlag, soakWidth) })
	})
}

func soak(t *testing.T, mode *testbed.Mode, jobs, width int) {
	s := newSite(t, mode, `memory = "400MiB"`, `pull_policy = "if-not-present"`)
	s.soakJob(t, 1) // from here on everything is there once
	before := s.openFiles(t)
	began := time.Now()
	var mu sync.Mutex
	var times []time.Duration
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range width {
		workers.Go(func() {
			for n := range numbers {
				took := s.soakJob(t, n)
				mu.Lock()
				times = append(times, took)
				mu.Unlock()
			}
		})
	}
	for n := range jobs {
		numbers <- n + 2
	}
	close(numbers)
	workers.Wait()
	if left := s.left(t); left != "nothing" {
		t.Errorf("left is %s", left)
	}
	var after int
	until(t, "libvirtd has closed its files", func() bool { after = s.openFiles(t); return after <= before })
	slices.Sort(times)
	t.Logf("%d jobs, %d at a time, in %.0f s: %.1f s each (median), %.1f s at most; libvirtd had %d open files before, %d after",
		jobs, width, time.Since(began).Seconds(), times[len(times)/2].Seconds(), times[len(times)-1].Seconds(), before, after)
}

// soakJob runs a job that says its number and ends with a status that follows
// from it.
func (s *site) soakJob(t *testing.T, n int) time.Duration {
	job := s.job(fmt.Sprintf("echo job %d; exit %d", n, n%3))
	job.ID = int64(1000 + n)
	began := time.Now()
	result := s.runner(t).Run(deadline(t), job)
	took := time.Since(began)
	checkOutputs(t, result)
	status := gitlab.Success
	if n%3 > 0 {
		status = gitlab.BuildFailure
	}
	script, _ := result.Find(gitlab.StageBuildScript)
	if result.Status != status || result.ExitCode != n%3 || strings.TrimSpace(script.Stdout) != fmt.Sprintf("job %d", n) {
		t.Errorf("job %d: %s", n, result)
	}
	return took
}

// openFiles is the number of open files of the site's libvirtd.
func (s *site) openFiles(t *testing.T) int {
	t.Helper()
	sum := 0
	for _, p := range processes(s.isLibvirtd()) {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.pid), "fd"))
		if err == nil {
			sum += len(entries)
		}
	}
	if sum == 0 {
		t.Fatal("libvirtd has no open files")
	}
	return sum
}
