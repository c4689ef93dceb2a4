//go:build boot

package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// A haltPoint is a point in the life of a job at which a test can stop it, or at which
// it stays for a while.
type haltPoint string

// The halt points, in the order of a job.
const (
	duringPull    haltPoint = "pull"     // a layer was asked for, nothing of it is here
	duringImport  haltPoint = "import"   // half of a layer is here and unpacked
	duringClone   haltPoint = "clone"    // qemu-img makes the overlay
	duringBoot    haltPoint = "boot"     // the machine runs, its kernel does not yet
	duringSSHWait haltPoint = "SSH wait" // the guest runs, its SSH server does not yet
	duringScript  haltPoint = "script"   // the job's script runs
	duringCleanup haltPoint = "cleanup"  // libvirt waits for a QEMU that does not end
)

// jobUntil is a job that can be halted at m.
func (s *site) jobUntil(m haltPoint, id int64) gitlab.Job {
	job := s.job("echo script runs")
	job.ID = id
	switch m {
	case duringSSHWait:
		job.Image.Name = s.slowImage
	case duringScript:
		job.Script = "echo script runs\nwhile ! [ -e /tmp/go ]; do sleep 0.1; done"
	}
	return job
}

// arrange sees to it that the next job stands still at m. reached waits until it
// does; release lets it go on.
func (s *site) arrange(t testing.TB, m haltPoint, job gitlab.Job) (reached func(log *gitlab.Trace), release func()) {
	t.Helper()
	name := machineOf(job)
	nothing := func() {}
	switch m {
	case duringPull, duringImport:
		s.forgetImages(t)
		hold := s.slow.Hold(map[haltPoint]float64{duringPull: 0, duringImport: 0.5}[m])
		t.Cleanup(hold.Release)
		return func(*gitlab.Trace) {
			select {
			case <-hold.reached:
			case <-deadline(t).Done():
				t.Fatal("no layer was ever asked for")
			}
		}, hold.Release
	case duringClone:
		held := filepath.Join(s.tools, "held")
		os.Remove(held) // of a qemu-img that was killed
		hold := s.Mode.WriteFile(t, filepath.Join(s.tools, "hold"), "")
		release = func() { os.Remove(hold) }
		t.Cleanup(release)
		return func(*gitlab.Trace) { until(t, "qemu-img runs", func() bool { return exists(held) }) }, release
	case duringBoot:
		return func(*gitlab.Trace) { until(t, "the machine runs", func() bool { return s.runs(name) }) }, nothing
	case duringSSHWait:
		return func(*gitlab.Trace) {
			until(t, "the guest runs", func() bool {
				console, _ := os.ReadFile(filepath.Join(s.Storage, "jobs", name, "console.log"))
				return strings.Contains(string(console), sshIsLate)
			})
		}, nothing
	case duringScript:
		return func(log *gitlab.Trace) {
			if err := log.WaitFor(deadline(t), "script runs"); err != nil {
				t.Fatal(err)
			}
		}, nothing
	}
	t.Fatalf("nobody can halt a job at %q", m)
	return nil, nil
}

// holdCleanup keeps the end of a machine from happening: its QEMU is stopped, so
// that it does not end when it is told to. reached waits until it has been told.
func (s *site) holdCleanup(t testing.TB, job gitlab.Job) (reached, release func()) {
	t.Helper()
	guest := one(t, "guest", isGuest(machineOf(job)))
	guest.signal(t, syscall.SIGSTOP)
	release = sync.OnceFunc(func() { guest.signal(t, syscall.SIGCONT) })
	t.Cleanup(release)
	return func() {
		until(t, "QEMU is told to end", func() bool { return guest.ended() || guest.pending(syscall.SIGTERM) })
	}, release
}

// runs says whether the machine was started, and prepare waits for its guest: then
// the machine's directory of overlays is gone, and QEMU is there.
func (s *site) runs(name string) bool {
	return exists(filepath.Join(s.Storage, "jobs", name)) &&
		!exists(filepath.Join(s.Storage, "clones", name)) &&
		len(processes(isGuest(name))) == 1
}

// orphanTime is what the processes of a machine get to end after it.
const orphanTime = 15 * time.Second

// passtDirs is the pattern of the directories for sockets of passt (docs/network.md).
func (s *site) passtDirs() string {
	storage := sha256.Sum256([]byte(filepath.Join(s.Storage, "clones")))
	return fmt.Sprintf("/tmp/sardine-*.%x.*", storage[:4])
}

// left is what there is of the machines of jobs: "nothing", or a list of "machine"
// (a domain), "process" (QEMU or passt) and "files".
func (s *site) left(t testing.TB) string {
	t.Helper()
	var left []string
	if strings.Contains(s.Mode.Virsh(t, "list", "--all", "--name"), "sardine-") {
		left = append(left, "machine")
	}
	orphan := func(p process) bool {
		return (p.isProgram("qemu-system-x86_64") || p.isProgram("passt")) && p.mentions("sardine-")
	}
	if len(left) == 0 {
		// Whoever ends a machine does not wait for the last of its processes.
		for began := time.Now(); len(processes(orphan)) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > orphanTime {
				left = append(left, "process")
				break
			}
		}
	}
	for _, dir := range []string{"jobs", "clones"} {
		if found, _ := filepath.Glob(filepath.Join(s.Storage, dir, "sardine-*")); len(found) > 0 {
			left = append(left, "files")
			break
		}
	}
	if found, _ := filepath.Glob(s.passtDirs()); len(found) > 0 {
		left = append(left, "passt's directory")
	}
	if len(left) == 0 {
		return "nothing"
	}
	return strings.Join(left, ", ")
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

// machineOf is the name of a job's machine.
func machineOf(job gitlab.Job) string {
	server := job.ServerURL
	if server == "" {
		server = "https://gitlab.example.com" // the runner's default
	}
	sum := sha256.Sum256([]byte(server))
	return fmt.Sprintf("sardine-%x-%d", sum[:4], job.ID)
}

// isGuest matches the QEMU of a machine.
func isGuest(machine string) func(process) bool {
	return func(p process) bool { return p.isProgram("qemu-system-x86_64") && p.mentions("guest="+machine) }
}

// isDriver matches the driver in that stage.
func (s *site) isDriver(stage string) func(process) bool {
	return func(p process) bool { return p.args[0] == s.Driver && p.mentions(stage) }
}

// sshIsLate is what the slow guest says on its console when all of it but SSH is
// there.
const sshIsLate = "guest: ssh is late"

// slowGuestLayout is the path of an OCI layout with a guest that starts its SSH
// server some seconds late.
func slowGuestLayout(t testing.TB) string { return slowGuest.layout(t, sshIsLate) }

var slowGuest = changedGuest{change: `
mkdir usr/sbin
(mkdir ../all.root && cd ../all.root && cpio -id --quiet usr/sbin/dropbear <../all)
mv ../all.root/usr/sbin/dropbear usr/sbin/dropbear.late
printf '#!/usr/bin/busybox sh\n(echo "%s"; sleep 5; exec /usr/sbin/dropbear.late "$@") &\n' "$1" >usr/sbin/dropbear
chmod 755 usr/sbin/*
`}
