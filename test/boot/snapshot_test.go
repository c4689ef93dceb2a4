//go:build boot

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/snapshot"
)

// withSnapshots is a machine that can be started from a snapshot: somebody has to set
// its clock.
func withSnapshots(l *lab) func(*vm.Spec) {
	return func(s *vm.Spec) {
		s.Network = network.User
		s.SnapshotDir = filepath.Join(l.dir, "clones", "snapshots", "one")
	}
}

func makeSnapshot(t *testing.T, l *lab, spec vm.Spec) {
	t.Helper()
	began := time.Now()
	if err := vm.MakeSnapshot(t.Context(), l.host, spec, guestLogin, 2*time.Minute, func() {}); err != nil {
		t.Fatalf("make a snapshot: %v\n%s", err, console.TailOf(err))
	}
	t.Logf("made a snapshot in %s", time.Since(began).Round(time.Millisecond))
}

// A snapshot that is damaged, or of another machine, is not used, and machines boot.
func TestSnapshotThatIsOfNoUse(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		good := l.spec("maker", withSnapshots(l))
		makeSnapshot(t, l, good)
		for _, test := range []struct {
			name, says string
			damage     func(t *testing.T, dir string)
			change     func(*vm.Spec)
			// forgotten says that nobody tries it again.
			forgotten bool
			// again says that it is tried again: one stands for all, since what is left of
			// them is the same.
			again bool
			// atNight is for rows that differ from others in what the parsers of the files
			// say, which have tests of their own.
			atNight bool
		}{
			{name: "no memory", says: "no such file", damage: removeFile("memory"), forgotten: true, again: true},
			{name: "empty memory", atNight: true, says: "not a save file", damage: rewriteFile("memory", func([]byte) []byte { return nil }), forgotten: true},
			{name: "half a memory", says: "restore domain", damage: rewriteFile("memory", func(m []byte) []byte { return m[:len(m)/2] }), forgotten: true},
			{name: "another file", atNight: true, says: "not a save file", damage: rewriteFile("memory", func(m []byte) []byte { return m[4096:] }), forgotten: true},
			{name: "no XML", atNight: true, says: "the XML", damage: rewriteFile("memory", func(m []byte) []byte {
				return bytes.Replace(m, []byte("<domain"), []byte("<nomain"), 1)
			}), forgotten: true},
			{name: "no disk", atNight: true, says: "no such file", damage: removeFile("*.qcow2"), forgotten: true},
			{name: "a disk on another file", says: "its backing file is", damage: rebase, forgotten: true},
			{name: "a note that is none", atNight: true, says: "damaged", damage: rewriteFile("snapshot.json", func([]byte) []byte { return []byte("{") })},
			{name: "a disk elsewhere", atNight: true, says: "no disk", damage: rewriteFile("snapshot.json", func(m []byte) []byte {
				return bytes.ReplaceAll(m, []byte(`"File": "`), []byte(`"File": "../`))
			}), forgotten: true},
			{name: "no disks", atNight: true, says: "guest", damage: rewriteFile("snapshot.json", func(m []byte) []byte {
				return regexp.MustCompile(`(?s)"Disks": \[.*?\]`).ReplaceAll(m, []byte(`"Disks": []`))
			}), forgotten: true},
			{name: "more memory", says: "none yet", change: func(s *vm.Spec) { s.Memory = 300 << 20 }},
			{name: "another port", atNight: true, says: "none yet", change: func(s *vm.Spec) { s.SSHPort = 2222 }},
		} {
			if test.atNight && !nightly {
				continue
			}
			spec := l.spec("clone", withSnapshots(l))
			spec.SnapshotDir = filepath.Join(l.dir, "clones", "snapshots", "copy")
			run(t, "cp", "-a", good.SnapshotDir, spec.SnapshotDir)
			if test.damage != nil {
				test.damage(t, snapshotIn(t, spec.SnapshotDir))
			}
			if test.change != nil {
				test.change(&spec)
			}
			tries := 1
			if test.again {
				tries = 2
			}
			for range tries {
				guest, err := vm.Start(t.Context(), l.host, spec)
				if err != nil {
					t.Fatalf("%s: %v", test.name, err)
				}
				said := strings.Join(guest.Notes, "\n")
				if guest.Resumed() || !strings.Contains(said, test.says) {
					t.Errorf("%s: resumed: %v; it says %q, want %q", test.name, guest.Resumed(), said, test.says)
				}
				if err := removal.Remove(t.Context(), l.host, spec.Name, spec.Place); err != nil {
					t.Fatal(err)
				}
			}
			left, _ := filepath.Glob(filepath.Join(snapshotIn(t, spec.SnapshotDir), "*"))
			if forgotten := len(left) == 1; forgotten != test.forgotten {
				t.Errorf("%s: forgotten: %v, there is %q", test.name, forgotten, left)
			}
			if err := snapshot.Remove(spec.SnapshotDir); err != nil {
				t.Error(err)
			}
		}
	})
}

// rebase has the overlay of a snapshot stand on something else, as a guest that broke out
// of its QEMU could.
func rebase(t *testing.T, dir string) {
	t.Helper()
	disks, _ := filepath.Glob(filepath.Join(dir, "*.qcow2"))
	if len(disks) != 1 {
		t.Fatal(disks)
	}
	if err := os.Chmod(disks[0], 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", disks[0])
}

// snapshotIn is the directory of the only snapshot of an image.
func snapshotIn(t *testing.T, dir string) string {
	t.Helper()
	notes, err := filepath.Glob(filepath.Join(dir, "*", "snapshot.json"))
	if len(notes) != 1 || err != nil {
		t.Fatal(notes, err)
	}
	return filepath.Dir(notes[0])
}

func removeFile(pattern string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if len(files) != 1 || err != nil {
			t.Fatal(files, err)
		}
		if err := os.Remove(files[0]); err != nil {
			t.Fatal(err)
		}
	}
}

func rewriteFile(name string, change func([]byte) []byte) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, name)
		content, err := os.ReadFile(path)
		if err == nil {
			err = errors.Join(os.Remove(path), os.WriteFile(path, change(content), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Machines that start from one snapshot go on where it stopped, side by side, each
// with a disk, an address and a name of its own, and the right time.
func TestSnapshot(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		makeSnapshot(t, l, l.spec("maker", withSnapshots(l)))
		if left := l.virsh(t, "list", "--all", "--name"); strings.TrimSpace(left) != "" {
			t.Errorf("domains that are left: %q", left)
		}
		var random, keys sync.Map
		var running sync.WaitGroup
		for n := range 3 {
			running.Go(func() {
				name := fmt.Sprintf("clone-%d", n)
				spec := l.spec(name, withSnapshots(l))
				spec.Record.Job = strconv.Itoa(n)
				began := time.Now()
				guest := l.start(t, spec)
				t.Logf("%s started in %s: %q", name, time.Since(began).Round(time.Millisecond), guest.Notes)
				if err := waitReady(t, guest, guestLogin); err != nil {
					t.Errorf("%s does not become ready: %v\n%s", name, err, console.TailOf(err))
					return
				}
				t.Logf("%s: %s from the beginning", name, time.Since(began).Round(time.Millisecond))
				if !guest.Resumed() {
					t.Errorf("%s has booted: %q", name, guest.Notes)
				}
				asked := time.Now()
				out, _ := script(t, guest, `date +%s; head -c 16 /dev/urandom | md5sum
sudo -n sh -c 'until [ -b /dev/vda ]; do sleep 0.1; done; dd if=/dev/vda bs=512 skip=98000 count=1 2>/dev/null | tr -d "\0"
echo `+name+` | dd of=/dev/vda bs=512 seek=98000 conv=notrunc 2>/dev/null; sync
dd if=/dev/vda bs=512 skip=98000 count=1 2>/dev/null | tr -d "\0"'`)
				lines := strings.Split(out, "\n")
				if len(lines) < 3 {
					t.Fatalf("%s says %q", name, out)
				}
				keys.Store(guest.Record().HostKey, name) // which the guest makes when it boots
				checkClock(t, name, lines[0], asked)
				if _, again := random.LoadOrStore(lines[1], true); again {
					t.Errorf("%s has the random numbers of another", name)
				}
				if lines[2] != name {
					t.Errorf("%s finds %q on its disk", name, lines[2])
				}
				if record := guest.Record(); record.Job != strconv.Itoa(n) || record.Address == "" {
					t.Errorf("%s has the record %+v", name, record)
				}
				if _, err := os.Stat(filepath.Join(spec.OverlayDir, name)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the overlays of %s have names: %v", name, err)
				}
			})
		}
		running.Wait()
		count := 0
		keys.Range(func(_, _ any) bool { count++; return true })
		if count != 1 {
			t.Errorf("the clones have %d host keys: they do not go on from one boot", count)
		}
	})
}

// checkClock wants the time that a guest said, in seconds, to be one since asked.
func checkClock(t *testing.T, name, said string, asked time.Time) {
	t.Helper()
	seconds, err := strconv.ParseInt(said, 10, 64)
	at := time.Unix(seconds, 0)
	if err != nil || at.Before(asked.Add(-3*time.Second)) || at.After(time.Now().Add(3*time.Second)) {
		t.Errorf("%s had the time %s, it was %d", name, said, asked.Unix())
	}
}

// While a snapshot is made, and after, its disks and the image's belong to root: another
// machine's QEMU cannot write to them.
func TestSnapshotIsNoOtherMachines(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		spec := l.spec("maker", withSnapshots(l))
		begun, done := make(chan bool), make(chan bool)
		go func() {
			defer close(done)
			<-begun
			overlay := filepath.Join(spec.OverlayDir, "maker")
			for { // as soon as it has nothing more to do with the disks
				if info, err := os.Stat(overlay); err == nil && info.Mode().Perm() == 0o700 {
					break
				}
				if t.Context().Err() != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			checkRoots(t, l.guest)
		}()
		err := vm.MakeSnapshot(t.Context(), l.host, spec, guestLogin, 2*time.Minute, func() { close(begun) })
		if err != nil {
			t.Fatal(err)
		}
		<-done
		checkRoots(t, l.guest)
		clones := []string{"one"}
		if nightly {
			clones = append(clones, "two")
		}
		for _, name := range clones {
			if guest := l.ready(t, l.spec(name, withSnapshots(l))); !guest.Resumed() {
				t.Errorf("%s has booted: %q", name, guest.Notes)
			}
			files, _ := filepath.Glob(filepath.Join(snapshotIn(t, spec.SnapshotDir), "*"))
			for _, file := range files {
				checkRoots(t, file)
			}
		}
	})
}

// checkRoots wants a file to be root's.
func checkRoots(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		t.Errorf("%s belongs to user %d", path, uid)
	}
}

// A guest that goes on is told to renew its random numbers. Of several disks each has the
// size that the guest knows, also if the first is grown.
func TestSnapshotGoesOn(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		const log = "/var/log/perl"
		able := variant{files: map[string]string{"usr/bin/perl": "#!/usr/bin/sh\necho \"$@\" >>" + log + "\n"}}.of(t, l)
		second := filepath.Join(l.dir, "second.raw")
		if err := os.WriteFile(second, make([]byte, 8<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		two := func(s *vm.Spec) {
			s.Disks = append(s.Disks, disk.Disk{Name: "second.raw", Path: second, Format: "raw", VirtualSize: 8 << 20})
			s.DiskSize = 200 << 20
		}
		makeSnapshot(t, l, l.spec("maker", withSnapshots(l), able, two))
		guest := l.ready(t, l.spec("clone", withSnapshots(l), able, two))
		if !guest.Resumed() {
			t.Fatalf("it has booted: %q", guest.Notes)
		}
		out, _ := script(t, guest, "cat "+log)
		// Once to see whether it can, and once in the clone.
		if lines := strings.Count(out, "0x5207"); lines != 2 { // RNDRESEEDCRNG, linux/random.h
			t.Errorf("told to renew its random numbers %d times: %q", lines, out)
		}
		out, status := script(t, guest, `until [ -b /dev/vdb ]; do sleep 0.1; done; cat /sys/block/vda/size /sys/block/vdb/size
sudo -n dd if=/dev/zero of=/dev/vda bs=1M seek=150 count=1 conv=notrunc,fsync 2>&1`)
		if !strings.HasPrefix(out, "409600\n16384\n") || status != 0 {
			t.Errorf("status %d: %s", status, out)
		}
	})
}
