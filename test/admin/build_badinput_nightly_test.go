//go:build boot && nightly

package admin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
)

// A failing is a build that must fail, and what its last line must say.
type failing struct {
	name string
	from string // empty: the test guest
	// settings beside those of the site
	settings []string
	script   string
	args     []string
	want     string
	// cancel is what is awaited before Ctrl-C; nil: it fails by itself.
	cancel func(t *testing.T, s *site, b *built, layout string)
}

// says waits until the build has said something.
func says(text string) func(*testing.T, *site, *built, string) {
	return func(t *testing.T, s *site, b *built, _ string) {
		await(t, func() bool {
			said, _ := os.ReadFile(b.said)
			return strings.Contains(string(said), text)
		})
	}
}

// writesLayout waits until the build exports.
func writesLayout(t *testing.T, s *site, _ *built, layout string) {
	await(t, func() bool {
		blobs, _ := os.ReadDir(filepath.Join(layout, "blobs", "sha256"))
		return len(blobs) > 0
	})
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// buildLogged starts a build that writes what it says to a file.
func (s *site) buildLogged(t *testing.T, args ...string) *built {
	t.Helper()
	b := &built{said: filepath.Join(t.TempDir(), "said")}
	file, err := os.Create(b.said)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	b.cmd = s.Mode.Command(t.Context(), s.Driver, append([]string{"--config", s.Config, "build", "--quiet"}, args...)...)
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, file
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBuildBadInput: whatever ends a build, its last line says why, and nothing is left: no
// machine, no file, no layout, no image in the store.
func TestBuildBadInput(t *testing.T) {
	s := newSite(t, testbed.Session(t))
	base := s.base(t)
	s.run(t, "pull", "--quiet", base)
	mute := make([]byte, 1<<20) // boots, and stands still
	copy(mute, "\xfa\xf4\xeb\xfd")
	mute[510], mute[511] = 0x55, 0xaa
	silent := "file:" + s.Mode.WriteFile(t, filepath.Join(s.dir, "silent.raw"), string(mute))
	small := s.smallDir(t, "8m")
	overlays := filepath.Join(small, "overlays")
	const fill = "dd if=/dev/urandom bs=1M count=16 | dd of=/dev/vda bs=1M seek=30 conv=notrunc"
	const signal = "ended by a signal"
	for _, c := range []failing{
		{name: "reboots", script: "echo b >/proc/sysrq-trigger; sleep 600", want: "which a step must not do"},
		{name: "powers off", script: "echo o >/proc/sysrq-trigger; sleep 600", want: "which a step must not do"},
		{name: "no SSH", from: silent, settings: []string{`timeout = "30s"`}, script: "true", want: "(waited 30s: the setting timeout)"},
		{name: "full guest", script: "mkdir /full && mount -t tmpfs -o size=64k none /full && dd if=/dev/zero of=/full/x bs=1k count=65", want: "script.sh: exit status 1"},
		{name: "full host", settings: []string{fmt.Sprintf("overlay_dir = %q", overlays)}, script: fill + "; sync; sleep 600", want: "paused by an I/O error of its disk (is the host's disk full?)"},
		{name: "full layout", script: fill, args: []string{"oci:" + filepath.Join(small, "out") + ":1"}, want: "no space left on device"},
		{name: "Ctrl-C while it boots", script: "true", cancel: says("Machine sardine-"), want: signal},
		{name: "Ctrl-C while it seals", script: "true", cancel: says("Sealing the image"), want: signal},
		{name: "Ctrl-C while it powers off", script: "true", cancel: says("Sealed ("), want: signal},
		{name: "Ctrl-C while it exports", script: fill, cancel: writesLayout, want: signal},
		{name: "Ctrl-C while it verifies", script: "true", cancel: says("Verifying"), want: signal},
	} {
		t.Run(c.name, func(t *testing.T) { s.checkFails(t, c, base) })
	}
}

func (s *site) checkFails(t *testing.T, c failing, base string) {
	s.Configure(t, c.settings...)
	if c.from != "" {
		s.run(t, "pull", "--quiet", c.from)
		base = c.from
	}
	before, images := testbed.TakeInventory(t, s.Mode, s.Storage), s.images(t)
	layout := filepath.Join(s.dir, "out")
	args := []string{"--from", base, "--run", s.Mode.WriteFile(t, filepath.Join(s.dir, "script.sh"), c.script+"\n")}
	if c.args != nil {
		layout, _, _ = strings.Cut(strings.TrimPrefix(c.args[0], "oci:"), ":")
		args = append(args, c.args...)
	} else {
		args = append(args, "oci:"+layout+":1")
	}
	b := s.buildLogged(t, args...)
	if c.cancel != nil {
		c.cancel(t, s, b, layout)
		b.cmd.Process.Signal(syscall.SIGINT)
	}
	err := b.cmd.Wait()
	raw, _ := os.ReadFile(b.said)
	said := strings.TrimSpace(string(raw))
	t.Log(said)
	if last := said[strings.LastIndex(said, "\n")+1:]; err == nil || strings.Count(last, c.want) != 1 || b.stdout.Len() > 0 {
		t.Errorf("%v: the last line is %q, want %q", err, last, c.want)
	}
	before.CheckNothingLeft(t)
	if now := s.images(t); !slices.Equal(now, images) {
		t.Errorf("images were left: %q, before: %q", now, images)
	}
	if left, err := os.ReadDir(layout); err == nil {
		t.Errorf("the layout was left: %v", left)
	}
}

// images are the files in the store.
func (s *site) images(t *testing.T) []string {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(s.Storage, "images", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// smallDir is a file system with little room.
func (s *site) smallDir(t *testing.T, size string) string {
	t.Helper()
	dir := filepath.Join(s.dir, "small")
	s.Mode.Run(t, "mkdir", dir)
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+size+",mode=0777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// TestBuildsAtOnce: two builds into one tag are two images, and the tag is that of the one that
// ended last.
func TestBuildsAtOnce(t *testing.T) {
	s := newSite(t, testbed.Session(t))
	base := s.base(t)
	s.run(t, "pull", "--quiet", base)
	layout := filepath.Join(s.dir, "out")
	type ended struct {
		b   *built
		err error
	}
	both := make(chan ended, 2)
	for _, name := range []string{"one", "two"} {
		script := s.Mode.WriteFile(t, filepath.Join(s.dir, name), "echo "+name+" | dd of=/dev/vda bs=4096 seek=11264 conv=notrunc\n")
		b := s.buildLogged(t, "--verify=false", "--from", base, "--run", script, "oci:"+layout+":1")
		go func() { both <- ended{b, b.cmd.Wait()} }()
	}
	var digests [2]string
	for i := range digests {
		e := <-both
		if e.err != nil {
			said, _ := os.ReadFile(e.b.said)
			t.Fatalf("%v: %s", e.err, said)
		}
		digests[i] = strings.TrimSpace(e.b.stdout.String())
	}
	if digests[0] == digests[1] {
		t.Errorf("both are %s", digests[0])
	}
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	tagged := 0
	for _, m := range index.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] == "1" {
			tagged++
			if m.Digest != digests[1] {
				t.Errorf("the tag is %s, want the one that ended last, %s", m.Digest, digests[1])
			}
		}
	}
	if tagged != 1 {
		t.Errorf("%d images have the tag: %s", tagged, raw)
	}
	s.run(t, "inspect", "oci:"+layout+":1")
}
