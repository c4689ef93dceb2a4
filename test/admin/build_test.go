//go:build boot

package admin

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// base exports the test guest as an image in a layout.
func (s *site) base(t *testing.T) string {
	t.Helper()
	disk := filepath.Join(s.dir, "guest.qcow2")
	content, err := os.ReadFile(testbed.Guest(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Mode.WriteFile(t, disk, string(content))
	config, err := os.ReadFile(testbed.GuestConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	layout := "oci:" + filepath.Join(s.dir, "base") + ":1"
	s.run(t, "export", "--quiet", "--format", "chunked", "--vm-config", s.Mode.WriteFile(t, filepath.Join(s.dir, "vm.json"), string(config)), "--disk", disk, layout)
	return layout
}

// A built is a build command that runs.
type built struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	said           string // the file with what it says, instead of stderr
}

func (s *site) build(t *testing.T, args ...string) *built {
	t.Helper()
	b := &built{cmd: s.Mode.Command(t.Context(), s.Driver, append([]string{"--config", s.Config, "build", "--quiet"}, args...)...)}
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}

// The small guest lives in memory, so what a build changes is its disk: behind the file
// system, where nothing is.
const mark = `#!/bin/sh
set -e
echo "one as $(id -un)"
cat # standard input is empty
dd if=/dev/zero bs=4096 count=1 2>/dev/null | tr '\0' Z | dd of=/dev/vda bs=4096 seek=11264 conv=notrunc 2>/dev/null
`

const checkCopies = `#!/bin/bash
set -e
[ "$(cat '/opt/tools/a b'$'\n''c')" = spaced ]
[ "$(cat /opt/tools/sub/run)" = "#!/bin/sh" ] && [ -x /opt/tools/sub/run ]
[ "$(readlink /opt/tools/out)" = /etc/shadow ]
[ "$(stat -c %u:%g /opt/tools/sub/run)" = 0:0 ]
[ "$(cat /etc/motd.new)" = motd ]
echo two finds the copies
`

// TestBuild makes an image, and two machines of it, before it gets its tag. The steps run in
// their order, as root. The layers of the base are those of the new image.
func TestBuild(t *testing.T) { testBuild(t, testbed.Session(t)) }

func testBuild(t *testing.T, mode *testbed.Mode) {
	s := newSite(t, mode)
	base := s.base(t)
	files := filepath.Join(s.dir, "files of mine")
	s.Mode.Run(t, "mkdir", "-p", filepath.Join(files, "sub"))
	s.Mode.WriteFile(t, filepath.Join(files, "a b\nc"), "spaced")
	s.Mode.WriteFile(t, filepath.Join(files, "sub", "run"), "#!/bin/sh\n")
	s.Mode.Run(t, "chmod", "755", filepath.Join(files, "sub", "run"))
	s.Mode.Run(t, "ln", "-s", "/etc/shadow", filepath.Join(files, "out"))
	before := testbed.TakeInventory(t, s.Mode, s.Storage)
	out := "oci:" + filepath.Join(s.dir, "out") + ":2"
	b := s.build(t, "--from", base, "--run", s.Mode.WriteFile(t, filepath.Join(s.dir, "one"), mark),
		"--copy", files+":/opt/tools", "--copy", s.Mode.WriteFile(t, filepath.Join(s.dir, "motd"), "motd")+":/etc/motd.new",
		"--run", s.Mode.WriteFile(t, filepath.Join(s.dir, "two"), checkCopies), "--label", "org.example.build=7", out)
	err := b.cmd.Wait()
	said := b.stderr.String()
	t.Log(said)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	before.CheckNothingLeft(t)
	order := []string{"Step 1 of 4", "one as root", "Step 2 of 4", "Step 4 of 4", "two finds the copies", "Sealing", "Verified"}
	for rest := said; len(order) > 0; order = order[1:] {
		_, after, found := strings.Cut(rest, order[0])
		if !found {
			t.Fatalf("%q is missing, or in the wrong place:\n%s", order[0], said)
		}
		rest = after
	}
	digest := strings.TrimSpace(b.stdout.String())
	if got := s.run(t, "inspect", out); !strings.Contains(got, digest) {
		t.Errorf("%s is not %s:\n%s", out, digest, got)
	}
	s.checkMark(t, digest)
	manifest := func(layout string) string { return s.Mode.Run(t, "skopeo", "inspect", "--raw", layout) }
	was, is := strings.Count(manifest(base), `"digest"`), 0
	for _, part := range strings.Split(manifest(base), `"digest":"`)[1:] {
		if layer, _, _ := strings.Cut(part, `"`); strings.Contains(manifest(out), layer) {
			is++
		}
	}
	if is < was-3 { // its config, domain and guest may differ
		t.Errorf("the new image has %d of the %d layers of its base", is, was)
	}
	if config := s.Mode.Run(t, "skopeo", "inspect", "--config", "--raw", out); !strings.Contains(config, `"org.example.build":"7"`) {
		t.Errorf("the label is missing: %s", config)
	}
}

// checkMark finds what the guest wrote in the disk of the image in the store.
func (s *site) checkMark(t *testing.T, digest string) {
	t.Helper()
	disks, err := filepath.Glob(filepath.Join(s.Storage, "images", strings.ReplaceAll(digest, "sha256:", "sha256*")+"*", "guest.qcow2"))
	if err != nil || len(disks) != 1 {
		t.Fatalf("the image is not in the store: %v, %v", disks, err)
	}
	s.Mode.Run(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 44M 4k", disks[0])
	s.Mode.Run(t, "qemu-img", "check", "-q", disks[0])
}

// A build that fails or is cancelled says why in one line, and leaves nothing: no machine, no
// file, no layout. With --keep the machine can be reached.
func TestBuildFails(t *testing.T) {
	s := newSite(t, testbed.Session(t))
	base := s.base(t)
	before := testbed.TakeInventory(t, s.Mode, s.Storage)
	dir := filepath.Join(s.dir, "out")
	left := func(t *testing.T) {
		t.Helper()
		before.CheckNothingLeft(t)
		if _, err := os.Lstat(dir); err == nil {
			t.Error("the layout was left")
		}
	}
	script := func(t *testing.T, text string) string {
		return s.Mode.WriteFile(t, filepath.Join(s.dir, "script.sh"), text)
	}
	t.Run("cancelled", func(t *testing.T) {
		b := s.build(t, "--from", base, "--run", script(t, "echo is running\nsleep 600\n"), "oci:"+dir+":1")
		for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(s.jobConsole(t), "guest: ready") && time.Now().Before(deadline); {
			time.Sleep(200 * time.Millisecond)
		}
		b.cmd.Process.Signal(syscall.SIGINT)
		if err := b.cmd.Wait(); err == nil {
			t.Error("a cancelled build succeeded")
		}
		if said := strings.TrimSpace(b.stderr.String()); !strings.HasSuffix(said, "canceled, timed out, or the runner stopped") && !strings.Contains(said, "signal") {
			t.Errorf("it said: %s", said)
		}
		left(t)
	})
	t.Run("kept", func(t *testing.T) {
		b := s.build(t, "--from", base, "--keep", "--timeout", "10s", "--run", script(t, "echo hangs; sleep 600\n"), "oci:"+dir+":1")
		err := b.cmd.Wait()
		said := b.stderr.String()
		if err == nil || !strings.Contains(said, "not done after 10s (--timeout)") {
			t.Errorf("%v: %s", err, said)
		}
		_, name, _ := strings.Cut(said, "gitlab-sardine-executor ssh ")
		name, _, _ = strings.Cut(name, " ")
		cmd := s.Mode.Command(t.Context(), s.Driver, "--config", s.Config, "ssh", name)
		cmd.Stdin = strings.NewReader("echo in $((40 + 2))\nexit 7\n")
		output, _ := cmd.Output()
		if !strings.Contains(string(output), "in 42") || cmd.ProcessState.ExitCode() != 7 {
			t.Errorf("ssh %s: %q, %v", name, output, cmd.ProcessState)
		}
		s.run(t, "sweep", "--all")
		left(t)
	})
	t.Run("fails", func(t *testing.T) {
		b := s.build(t, "--from", base, "--run", script(t, "echo about to fail; exit 7\n"), "oci:"+dir+":1")
		err := b.cmd.Wait()
		said := strings.TrimSpace(b.stderr.String())
		lines := strings.Split(said, "\n")
		last := lines[len(lines)-1]
		if err == nil || b.stdout.Len() > 0 || !strings.Contains(said, "about to fail") || !strings.HasSuffix(last, "script.sh: exit status 7") || !strings.Contains(last, "step 1") {
			t.Errorf("%v: %s", err, said)
		}
		left(t)
	})
}

// jobConsole is what the guest has written to its console.
func (s *site) jobConsole(t *testing.T) string {
	t.Helper()
	consoles, _ := filepath.Glob(filepath.Join(s.Storage, "jobs", "sardine-*", "console.log"))
	if len(consoles) == 0 {
		return ""
	}
	text, _ := os.ReadFile(consoles[0])
	return string(text)
}
