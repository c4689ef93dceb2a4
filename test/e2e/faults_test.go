//go:build boot

package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

var (
	updateFlag    = flag.Bool("update", false, "write what the tests find into docs/reliability.md")
	faultsFlag    = flag.Bool("faults", false, "kill parts at all moments of docs/reliability.md")
	allFaultsFlag = flag.Bool("all-faults", false, "with -faults: every part at every haltPoint, in both modes")
)

// What is killed.
const (
	theDriver   = "driver"
	theGuest    = "guest" // QEMU
	theLibvirtd = "libvirtd"
	theRegistry = "registry"
	thePasst    = "passt"
)

// A cell is one field of the matrix: what is killed, and when.
type cell struct {
	victim string
	at     haltPoint
	// modes in which it is tried by default.
	session, system bool
}

// matrix leaves out what is not there at that haltPoint: a guest before boot, and
// passt where libvirt has the network. In system mode, where it differs in the
// daemon only, some cells are left to -faults.
var matrix = []cell{
	{theDriver, duringPull, true, false},
	{theDriver, duringImport, true, false},
	{theDriver, duringClone, true, true},
	{theDriver, duringBoot, true, true},
	{theDriver, duringSSHWait, true, false},
	{theDriver, duringScript, true, true},
	{theDriver, duringCleanup, true, true},
	{theGuest, duringBoot, true, true},
	{theGuest, duringSSHWait, true, false},
	{theGuest, duringScript, true, true},
	{theGuest, duringCleanup, true, true},
	{theLibvirtd, duringPull, true, true},
	{theLibvirtd, duringImport, true, false},
	{theLibvirtd, duringClone, true, true},
	{theLibvirtd, duringBoot, true, true},
	{theLibvirtd, duringSSHWait, true, true},
	{theLibvirtd, duringScript, true, true},
	{theLibvirtd, duringCleanup, true, true},
	{theRegistry, duringPull, true, false},
	{theRegistry, duringImport, true, false},
	{theRegistry, duringClone, true, false},
	{theRegistry, duringBoot, true, false},
	{theRegistry, duringScript, true, false},
	{thePasst, duringBoot, true, false},
	{thePasst, duringSSHWait, true, false},
	{thePasst, duringScript, true, false},
	{thePasst, duringCleanup, true, false},
}

// An effect is what came of it.
type effect struct {
	// sees is what GitLab Runner sees of the stage, and of the job.
	sees string
	// left is what there is when the runner has done what it does: nothing more if
	// the driver died and the runner with it, cleanup otherwise.
	left string
	// swept says whether an ordinary sweep, as each prepare does it, is enough, or
	// the machine's time has to pass first (sweep --all).
	swept string
}

// TestFaults kills each part at each haltPoint, and wants of each: the right failure
// class, nothing left after a sweep, and a next job that succeeds. The rest is as
// docs/reliability.md says. Without its flags it does so while a script runs only.
func TestFaults(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		for i, c := range matrix {
			chosen := map[string]bool{"session": c.session, "system": c.system}[mode.Name]
			if !*faultsFlag && c.at != duringScript {
				continue
			}
			if !chosen && (!*allFaultsFlag || c.victim == thePasst && mode.Name == "system") {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", c.victim, c.at), func(t *testing.T) {
				began := time.Now()
				f := &fault{site: s, cell: c, job: s.jobUntil(c.at, int64(100+10*i))}
				e := f.try(t)
				t.Logf("%s (%.1f s)", f.row(mode, e), time.Since(began).Seconds())
				checkRow(t, f.row(mode, e))
			})
		}
	})
}

// A fault is a cell that is being tried.
type fault struct {
	*site
	cell
	job gitlab.Job
}

// row is the cell's line of the table in docs/reliability.md.
func (f *fault) row(mode *testbed.Mode, e effect) string {
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | success |", f.victim, f.at, mode.Name, e.sees, e.left, e.swept)
}

func (f *fault) try(t *testing.T) (e effect) {
	t.Helper()
	switch {
	case f.at == duringCleanup:
		e.sees = f.inCleanup(t)
	case f.victim == theDriver:
		e.sees = f.withRunner(t)
	default:
		e.sees = f.inJob(t)
	}
	e.left, e.swept = f.sweep(t)
	// Without -faults, the next cell's job is the next job.
	if *faultsFlag && !strings.HasSuffix(e.sees, "job: success") {
		f.nextJob(t)
	}
	return e
}

// inJob kills something under a job that a runner runs.
func (f *fault) inJob(t *testing.T) string {
	t.Helper()
	reached, release := f.arrange(t, f.at, f.job)
	build := f.runner(t).Start(deadline(t), f.job)
	reached(build.Log())
	recover := f.kill(t)
	recover()
	release()
	if f.at == duringScript && (f.victim == theLibvirtd || f.victim == theRegistry) {
		f.inGuest(t, f.job, "touch /tmp/go")
	}
	result := build.Wait()
	checkOutputs(t, result)
	failed, attempts := failures(result)
	if failed.Stage == "" {
		return "nothing; job: success"
	}
	line := f.failure(t, failed)
	if f.at != duringScript && result.Status == gitlab.Success {
		return fmt.Sprintf("%s; attempt %d, job: success", line, attempts)
	}
	return fmt.Sprintf("%s; job: %s", line, result.Status)
}

// failure tells how a stage failed, and wants the class of it: nothing here is the
// fault of the job.
func (f *fault) failure(t *testing.T, e gitlab.Execution) string {
	t.Helper()
	stage := e.Stage
	if stage == gitlab.StageBuildScript {
		stage = "script"
	}
	switch {
	case e.Signal == syscall.SIGKILL:
		return stage + ": killed"
	case e.ExitCode != gitlab.SystemFailureExitCode:
		t.Errorf("want a system failure, got %s", e)
		return fmt.Sprintf("%s: exit code %d", stage, e.ExitCode)
	case e.Stage != "cleanup":
		checkErrorLine(t, e.Stderr, []string{"system failure"})
	}
	t.Log(strings.TrimSpace(e.Stderr))
	return stage + ": system failure"
}

// withRunner kills driver and runner: nobody cleans up.
func (f *fault) withRunner(t *testing.T) string {
	t.Helper()
	reached, release := f.arrange(t, f.at, f.job)
	runner := f.runnerWithout(t, "cleanup")
	runner.PrepareWait = time.Minute
	build := runner.Start(deadline(t), f.job)
	reached(build.Log())
	f.kill(t)
	release()
	if f.at != duringScript {
		until(t, "the attempt is over", func() bool { return len(processes(f.isDriver("prepare"))) == 0 })
		build.Cancel()
	}
	result := build.Wait()
	checkOutputs(t, result)
	failed, _ := failures(result)
	return f.failure(t, failed)
}

// inCleanup kills something while libvirt ends the machine.
func (f *fault) inCleanup(t *testing.T) string {
	t.Helper()
	f.mustPrepare(t, f.job)
	reached, release := f.holdCleanup(t, f.job)
	cleanup := f.background(t, f.job, "cleanup")
	reached()
	recover := f.kill(t)
	release()
	recover()
	e := <-cleanup
	if e.OutputHeld {
		t.Error(e)
	}
	until(t, "libvirt knows that QEMU has ended", func() bool {
		return !strings.Contains(f.Mode.Virsh(t, "list", "--all", "--name"), machineOf(f.job))
	})
	if e.ExitCode == 0 {
		return "nothing; job: success"
	}
	return f.failure(t, e)
}

// kill kills the victim; recover does what an init system does then.
func (f *fault) kill(t *testing.T) (recover func()) {
	t.Helper()
	machine := machineOf(f.job)
	nothing := func() {}
	switch f.victim {
	case theDriver:
		stage := map[haltPoint]string{duringScript: "run", duringCleanup: "cleanup"}[f.at]
		if stage == "" {
			stage = "prepare"
		}
		one(t, "driver", f.isDriver(stage)).signal(t, syscall.SIGKILL)
	case theGuest:
		one(t, "guest", isGuest(machine)).signal(t, syscall.SIGKILL)
	case thePasst:
		one(t, "passt", func(p process) bool { return p.isProgram("passt") && p.mentions(machine) }).signal(t, syscall.SIGKILL)
	case theRegistry:
		f.registry.Stop() // by SIGKILL
		return func() { f.registry.Start(t) }
	case theLibvirtd:
		return f.endLibvirtd(t, syscall.SIGKILL)
	}
	return nothing
}

// endLibvirtd ends the daemon of the site's mode. That of an ordinary user
// starts again when somebody wants it, the system's by its init system.
func (s *site) endLibvirtd(t *testing.T, signal syscall.Signal) (recover func()) {
	t.Helper()
	var daemon process
	until(t, "libvirtd is one", func() bool { // it forks, to start programs
		found := processes(s.isLibvirtd())
		if len(found) == 1 {
			daemon = found[0]
		}
		return len(found) == 1
	})
	daemon.signal(t, signal)
	until(t, "libvirtd is gone", daemon.ended)
	if s.Mode.Name == "session" {
		return func() {}
	}
	return func() {
		// As often as systemd would (Restart=on-failure).
		output := filepath.Join(s.Mode.Dir(t), "output") // a pipe would stay open
		until(t, "libvirtd starts", func() bool {
			err := s.Mode.Command(deadline(t), "sh", "-c", "exec libvirtd --daemon >"+output+" 2>&1").Run()
			if err != nil {
				text, _ := os.ReadFile(output)
				t.Logf("libvirtd does not start: %v: %s", err, text)
			}
			return err == nil
		})
	}
}

// isLibvirtd matches the site's daemon.
func (s *site) isLibvirtd() func(process) bool {
	root := s.Mode.Name == "system"
	return func(p process) bool { return p.isProgram("libvirtd") && root == (p.uid == 0) }
}

// restartLibvirtd ends the daemon and starts it again, as an upgrade does. That of an
// ordinary user starts when a client connects.
func (s *site) restartLibvirtd(t *testing.T) {
	t.Helper()
	s.endLibvirtd(t, syscall.SIGTERM)()
	s.Mode.Virsh(t, "list")
}

// The runner calls cleanup once: one that comes while libvirtd is away waits for it.
func TestCleanupWhileLibvirtdIsAway(t *testing.T) {
	systemOnly(t, func(t *testing.T, mode *testbed.Mode) { // a user's daemon starts when a client connects
		log := filepath.Join(mode.Dir(t), "log")
		s := sharedSite(t, mode, fmt.Sprintf("log_file = %q", log))
		job := s.job("true")
		s.mustPrepare(t, job)
		back := s.endLibvirtd(t, syscall.SIGTERM)
		cleanup := s.background(t, job, "cleanup")
		until(t, "cleanup has found no libvirtd", func() bool {
			text, _ := os.ReadFile(log)
			return strings.Contains(string(text), "cleanup retries")
		})
		back()
		if e := <-cleanup; e.ExitCode != 0 {
			t.Error(e)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
			s.clear(t)
		}
	})
}

// sweep says what is left, and what it takes to remove that: "nothing", what the
// next prepare does, or the end of the machine's time. It is an error if something
// stays.
func (f *fault) sweep(t *testing.T) (left, swept string) {
	t.Helper()
	left = f.left(t)
	if left == "nothing" {
		return left, ""
	}
	f.Run(t, "sweep")
	swept = "sweep"
	if f.left(t) != "nothing" {
		f.Run(t, "sweep", "--all")
		swept = "sweep, when the job's time is over"
	}
	if still := f.left(t); still != "nothing" {
		t.Errorf("sweep has left: %s", still)
	}
	return left, swept
}

// nextJob wants the next job to succeed.
func (f *fault) nextJob(t *testing.T) {
	t.Helper()
	job := f.site.job("echo next job")
	job.ID = f.job.ID + 1
	result := f.runner(t).Run(deadline(t), job)
	checkOutputs(t, result)
	if result.Status != gitlab.Success {
		t.Errorf("the next job: %s", result)
	}
	if left := f.left(t); left != "nothing" {
		t.Errorf("the next job has left: %s", left)
	}
}

// reliabilityDoc has a table of the faults.
const reliabilityDoc = "../../docs/reliability.md"

// checkRow wants the row to stand in docs/reliability.md, or puts it there.
func checkRow(t *testing.T, row string) {
	t.Helper()
	text, err := os.ReadFile(reliabilityDoc)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	if slices.Contains(lines, row) || t.Failed() {
		return
	}
	key := strings.Join(strings.SplitN(row, "|", 5)[:4], "|") + "|"
	i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, key) })
	if !*updateFlag {
		documented := "nothing"
		if i >= 0 {
			documented = lines[i]
		}
		t.Errorf("docs/reliability.md says otherwise (-update changes it):\n  %s\n  %s", documented, row)
		return
	}
	if i < 0 {
		i = slices.Index(lines, "<!-- end of the table of faults -->")
		lines = slices.Insert(lines, i, row)
	}
	lines[i] = row
	sortRows(lines)
	if err := os.WriteFile(reliabilityDoc, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sortRows puts the rows of the table into the order of the matrix.
func sortRows(lines []string) {
	begin := slices.Index(lines, "|---|---|---|---|---|---|---|") + 1
	end := slices.Index(lines, "<!-- end of the table of faults -->")
	place := func(row string) int {
		field := strings.Split(row, "|")
		i := slices.IndexFunc(matrix, func(c cell) bool {
			return c.victim == strings.TrimSpace(field[1]) && string(c.at) == strings.TrimSpace(field[2])
		})
		return 2*i + strings.Count(field[3], "system")
	}
	slices.SortFunc(lines[begin:end], func(a, b string) int { return place(a) - place(b) })
}
