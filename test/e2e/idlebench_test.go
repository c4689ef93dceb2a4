//go:build boot

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// otherKind is a setting that no idle machine of these benchmarks was made with: jobs that have
// it boot.
const otherKind = `login_grace = "31s"`

// idleRounds of each measurement: four machines boot in each.
const idleRounds = 3

// BenchmarkIdle measures prepare with an idle machine against prepare with a boot, and against
// ssh guest true; prepare with a boot on a host that idle machines fill against one with room;
// and what serve takes at rest.
func BenchmarkIdle(b *testing.B) {
	b.Run("session", func(b *testing.B) { benchmarkIdle(b, testbed.Session(b)) })
	b.Run("system", func(b *testing.B) { benchmarkIdle(b, testbed.System(b)) })
}

func benchmarkIdle(b *testing.B, mode *testbed.Mode) {
	const idle = 4
	full := fmt.Sprintf("host_reserve = '%dB'", hostMemory(b, mode)-idle*(256<<20)-(64<<20))
	s, v := idleSite(b, mode, idle, `memory = "256MiB"`, `pull_policy = "if-not-present"`, full)
	booting := *s
	installation := *s.Site
	booting.Site = &installation
	booting.Config = filepath.Join(mode.Dir(b), "boot.toml")
	times := map[string][]time.Duration{}
	ssh := newSSH(b, mode)
	prepare := func(s *site, name string) {
		job := s.job("")
		e := s.runner(b).Stage(b.Context(), job, "prepare")
		if e.ExitCode != 0 || strings.Contains(e.Stderr, readyBefore) != (name == "idle") {
			b.Fatalf("%s: %s", name, e)
		}
		times[name] = append(times[name], e.Duration+e.OutputDelay)
		if name == "idle" {
			times["ssh true"] = append(times["ssh true"], ssh.run(b, guestAddress(b, e)))
		}
		if e := s.runner(b).Stage(b.Context(), job, "cleanup"); e.ExitCode != 0 {
			b.Fatal(e)
		}
	}
	for b.Loop() {
		for range idleRounds {
			s.awaitIdle(b, idle)
			prepare(s, "idle")
			s.awaitIdle(b, idle)
			booting.Configure(b, `memory = "256MiB"`, `pull_policy = "if-not-present"`, otherKind)
			prepare(&booting, "boot-room")
			s.awaitIdle(b, idle)
			booting.Configure(b, `memory = "256MiB"`, `pull_policy = "if-not-present"`, otherKind, full)
			prepare(&booting, "boot-full")
		}
		s.awaitIdle(b, idle)
		v.rest(b)
	}
	compare(b, times, "idle", "boot-room")
	compare(b, times, "idle", "ssh true")
	compare(b, times, "boot-full", "boot-room")
}

// hostMemory is the memory of the host in bytes, as libvirt sees it.
func hostMemory(t testing.TB, mode *testbed.Mode) int64 {
	t.Helper()
	for line := range strings.Lines(mode.Virsh(t, "nodeinfo")) {
		if field := strings.Fields(line); len(field) == 4 && field[0] == "Memory" {
			n, err := strconv.ParseInt(field[2], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("virsh nodeinfo does not tell the memory")
	return 0
}

// restTime is how long the service is watched at rest.
const restTime = 30 * time.Second

// rest reports the processor and the memory that the service takes while nothing happens. Of its
// resident memory (RSS), most is pages of the program and of libraries, which other processes map
// too: libvirt's daemon the libraries, the stages of jobs both. PSS counts the share of this one,
// and own is what no file backs.
func (v *service) rest(b *testing.B) {
	b.Helper()
	begin := v.processorTime(b)
	time.Sleep(restTime)
	used := 100 * (v.processorTime(b) - begin).Seconds() / restTime.Seconds()
	rss, pss, own := v.memory(b, "Rss"), v.memory(b, "Pss"), v.memory(b, "Anonymous")
	b.Logf("serve at rest: %.2f %% of a processor; memory: RSS %.1f MiB, PSS %.1f MiB, own %.1f MiB", used, rss, pss, own)
	b.ReportMetric(used, "rest-%")
	b.ReportMetric(rss, "rest-RSS-MiB")
	b.ReportMetric(pss, "rest-PSS-MiB")
	b.ReportMetric(own, "rest-own-MiB")
}

// memory is a value of proc_pid_smaps_rollup(5) in MiB.
func (v *service) memory(t testing.TB, key string) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", v.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if field := strings.Fields(line); field[0] == key+":" {
			kib, err := strconv.ParseFloat(field[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib / 1024
		}
	}
	t.Fatalf("the kernel does not tell %s", key)
	return 0
}

// processorTime is what the service has used so far. The kernel counts in hundredths of a
// second (proc_pid_stat(5), USER_HZ).
func (v *service) processorTime(t testing.TB) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	field := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int64
	for _, text := range field[11:13] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
