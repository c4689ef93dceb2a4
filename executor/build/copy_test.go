package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestParseCopy(t *testing.T) {
	for text, want := range map[string]Copy{
		"a:/b":           {Src: "a", Dst: "/b"},
		"a b\nc:/d e/":   {Src: "a b\nc", Dst: "/d e/"},
		"a:b:/c":         {Src: "a:b", Dst: "/c"},
		"/a:/b:/c":       {Src: "/a:/b", Dst: "/c"},
		"https:x:/opt/x": {Src: "https:x", Dst: "/opt/x"},
	} {
		if got, err := ParseCopy(text); err != nil || *got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "a", "a:", "a:b", ":/b", "a:b/c", "a\x00:/b"} {
		if got, err := ParseCopy(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// entries packs what c copies, and lists it.
func entries(t *testing.T, c *Copy) map[string]*tar.Header {
	t.Helper()
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	_, name := c.target()
	if err := c.pack(&packed, name); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]*tar.Header)
	for r := tar.NewReader(&packed); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if !header.AccessTime.IsZero() || !header.ChangeTime.IsZero() {
			t.Errorf("%q has times that busybox takes for a part of its name", header.Name)
		}
		found[header.Name] = header
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A directory is copied without what is outside of it, whatever its names and links are.
func TestCopyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "source of\nfiles")
	outside := write(t, filepath.Join(t.TempDir(), "secret"), "secret")
	write(t, filepath.Join(dir, "sub", " a b\nc"), "text")
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "file")), os.Symlink(filepath.Dir(outside), filepath.Join(dir, "dir")),
		os.Symlink("sub/ a b\nc", filepath.Join(dir, "inside")), os.Chmod(filepath.Join(dir, "sub"), 0o750)); err != nil {
		t.Fatal(err)
	}
	found := entries(t, &Copy{Src: dir, Dst: "/opt"})
	if len(found) != 5 {
		t.Errorf("found %d entries: %v", len(found), found)
	}
	for name, link := range map[string]string{"./file": outside, "./dir": filepath.Dir(outside), "./inside": "sub/ a b\nc"} {
		if h := found[name]; h == nil || h.Typeflag != tar.TypeSymlink || h.Linkname != link {
			t.Errorf("%s: %+v", name, h)
		}
	}
	if h := found["./sub/"]; h == nil || h.Mode != 0o750 || h.Uid != 0 || h.Uname != "root" {
		t.Errorf("sub: %+v", h)
	}
	if h := found["./sub/ a b\nc"]; h == nil || h.Size != 4 || h.Gid != 0 {
		t.Errorf("the file: %+v", h)
	}
}

// A file gets the name DST, or goes into the directory DST. It may be named by a link.
func TestCopyFile(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "a"), "text")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ src, dst, dir, name string }{
		{file, "/etc/b", "/etc", "b"},
		{file, "/etc/", "/etc", "a"},
		{link, "/etc/", "/etc", "link"},
		{file, "/b", "/", "b"},
		{file, "/", "/", "a"},
	} {
		c := &Copy{Src: test.src, Dst: test.dst}
		found := entries(t, c)
		if dir, name := c.target(); dir != test.dir || name != test.name || found["./"+test.name] == nil || found["./"+test.name].Typeflag != tar.TypeReg {
			t.Errorf("%s: in %s: %v", c, dir, found)
		}
	}
}

// What cannot be copied is found before there is a machine.
func TestCopyRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "sub", "fifo")
	write(t, filepath.Join(dir, "sub", "file"), "")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file",
		dangling:                   "no such file",
		fifo:                       "neither a file nor a directory",
		filepath.Join(dir, "sub"):  "fifo is neither a file nor a directory",
		"/dev/null":                "neither a file nor a directory",
	} {
		err := (&Copy{Src: src, Dst: "/x"}).check()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q in one line", src, err, want)
		}
	}
}
