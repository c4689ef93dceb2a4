package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/guestssh"
)

// A shellGuest runs commands in a shell of this host, without sudo.
type shellGuest struct{ dir string }

func (g shellGuest) Run(ctx context.Context, command guestssh.Command) (int, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", command.Line)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = command.Stdin, command.Stdout, command.Stderr
	cmd.Dir, cmd.WaitDelay = g.dir, time.Second
	cmd.Env = []string{"PATH=" + g.dir + ":/usr/bin:/bin", "TMPDIR=" + g.dir}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return exit.ExitCode(), nil
	}
	return 0, errors.Join(context.Cause(ctx), err)
}

// newShellGuest has a user who is root already, or gets a sudo that changes nothing.
func newShellGuest(t *testing.T) shellGuest {
	t.Helper()
	g := shellGuest{t.TempDir()}
	if err := os.WriteFile(filepath.Join(g.dir, "sudo"), []byte("#!/bin/sh\nshift\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return g
}

// A script is a file of its own: it may name an interpreter, and its commands cannot read the
// rest of it.
func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		script, said string
		err          error
	}{
		"without an interpreter": {"echo one; cat; echo two\n", "one\ntwo\n", nil},
		"with one":               {"#!/usr/bin/env bash\n[[ a == a ]] && echo ${BASH_VERSION:+bash}\n", "bash\n", nil},
		"status":                 {"echo out; echo err >&2; exit 7", "out\nerr\n", exitError(7)},
		"bytes":                  {"printf 'grüß \\033[1m'", "grüß \x1b[1m", nil},
	} {
		t.Run(name, func(t *testing.T) {
			guest := newShellGuest(t)
			path := write(t, filepath.Join(t.TempDir(), "it's a script"), c.script)
			step := &Run{Path: path}
			if err := step.check(); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			err := step.do(t.Context(), guest, joblog.New(&said))
			if said.String() != c.said || !errors.Is(err, c.err) {
				t.Errorf("%v, %q; want %v, %q", err, said.String(), c.err, c.said)
			}
			if left, _ := os.ReadDir(guest.dir); len(left) != 1 { // sudo
				t.Errorf("files were left: %v", left)
			}
		})
	}
}

// A copy arrives in the guest as it is here. An error of this host is told, and not that of tar.
func TestCopyArrives(t *testing.T) {
	guest := newShellGuest(t)
	src := filepath.Join(t.TempDir(), "a b\nc")
	write(t, filepath.Join(src, "sub", "file"), "text")
	c := &Copy{Src: src, Dst: guest.dir + "/new/dir"}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	if err := c.do(t.Context(), guest, joblog.New(&said)); err != nil {
		t.Fatal(err, said.String())
	}
	if text, err := os.ReadFile(guest.dir + "/new/dir/sub/file"); string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	if err := os.Remove(filepath.Join(src, "sub", "file")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(src); err != nil {
		t.Fatal(err)
	}
	if err := c.do(t.Context(), guest, joblog.New(&said)); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a directory that is gone: %v, %s", err, said.String())
	}
	full := &Copy{Src: write(t, filepath.Join(t.TempDir(), "big"), strings.Repeat("x", 1<<20)), Dst: "/dev/full/x"}
	if err := full.check(); err != nil {
		t.Fatal(err)
	}
	if err := full.do(t.Context(), guest, joblog.New(&said)); !errors.As(err, new(exitError)) {
		t.Errorf("a guest that cannot write: %v", err)
	}
}

// What cannot become an image is refused before there is a machine.
func TestOptions(t *testing.T) {
	settings, err := config.Parse([]byte(fmt.Sprintf("[defaults]\nstorage = %q\n[[image]]\nmatch = 'windows:1'\nshell = 'pwsh'\nguest_builds_dir = 'C:\\b'\nguest_cache_dir = 'C:\\c'\n", t.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	ref := func(text string) oci.Reference {
		r, err := oci.ParseReference(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	layout, registry := ref("oci:/nowhere:1"), ref("registry.example.com/a:1")
	for want, o := range map[string]Options{
		"build writes to a layout":      {From: "debian:13", To: registry},
		"build pushes to a registry":    {From: "debian:13", To: layout, Push: &layout},
		"want oci:PATH":                 {From: "oci:", To: layout},
		"max_disk":                      {From: "debian:13", To: layout, Disk: 1 << 50},
		"runs Windows":                  {From: "windows:1", To: layout},
		"step 1: --run /none: open":     {From: "debian:13", To: layout, Steps: []Step{&Run{Path: "/none"}}},
		"the script is empty":           {From: "debian:13", To: layout, Steps: []Step{&Run{Path: write(t, filepath.Join(t.TempDir(), "empty"), " \n")}}},
		"/dev/zero is not a regular":    {From: "debian:13", To: layout, Steps: []Step{&Run{Path: "/dev/zero"}}},
		"step 1: --copy /none:/x: stat": {From: "debian:13", To: layout, Steps: []Step{&Copy{Src: "/none", Dst: "/x"}}},
	} {
		o.Settings = settings
		if _, err := newBuilder(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The user of the build is that of the jobs; what the base says of other users stays.
func TestGuestConfig(t *testing.T) {
	base := oci.GuestConfig{Users: []oci.User{{Username: "a", Password: "1"}, {Username: "b", Password: "2"}}}
	for user, want := range map[string]string{"": "[{a 1 0} {b 2 0}]", "b": "[{b 2 0} {a 1 0}]", "c": "[{c  0} {a 1 0} {b 2 0}]"} {
		b := &builder{Options: Options{User: user}}
		if got := fmt.Sprint(b.guestConfig(base).Users); got != want {
			t.Errorf("%q: %s, want %s", user, got, want)
		}
	}
}

// --user wins over the first user of the base, with the password of the base if it has one.
func TestUser(t *testing.T) {
	settings, err := config.Parse([]byte(fmt.Sprintf("[defaults]\nstorage = %q\nusername = 'a'\npassword = 'p'\n", t.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	to, err := oci.ParseReference("oci:/nowhere:1")
	if err != nil {
		t.Fatal(err)
	}
	base := oci.GuestConfig{Users: []oci.User{{Username: "a", Password: "1"}, {Username: "b", Password: "2"}}}
	for user, want := range map[string]string{"": "a 1", "b": "b 2", "c": "c p"} {
		b, err := newBuilder(Options{Settings: settings, From: "debian:13", To: to, User: user})
		if err != nil {
			t.Fatal(err)
		}
		if login := b.settings.Login(base); login.User+" "+login.Password != want {
			t.Errorf("%q: %s %s, want %s", user, login.User, login.Password, want)
		}
	}
}

// The overlay takes the name of its disk, unless the domain XML says that this is raw.
func TestNewDisks(t *testing.T) {
	base := &oci.Image{
		Dir: "/store/a", DomainXML: []byte(`<domain type="kvm"><devices><disk type="file"><driver name="qemu" type="raw"/><source file="b.img"/><target dev="vda"/></disk></devices></domain>`),
		Disks: []oci.Disk{{Name: "base.qcow2", Format: "qcow2"}, {Name: "a.qcow2", Format: "qcow2", Backing: "base.qcow2"}, {Name: "b.img", Format: "raw"}, {Name: "c.iso", Format: "raw", CDROM: true}},
	}
	disks, doc, err := newDisks(base, map[string]string{"a.qcow2": "/clones/m/a.qcow2", "b.img": "/clones/m/b.qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(disks), "[{/clones/m/a.qcow2 a.qcow2 qcow2 false} {/clones/m/b.qcow2 b.qcow2 qcow2 false} {/store/a/c.iso c.iso raw true}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if text := string(doc); !strings.Contains(text, `file="b.qcow2"`) || !strings.Contains(text, `type="qcow2"`) || strings.Contains(text, "b.img") {
		t.Errorf("got %s", text)
	}
}
