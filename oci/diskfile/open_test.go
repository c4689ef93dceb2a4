package diskfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/oci"
)

// TestOpen: what another user of the host could exchange is not read.
func TestOpen(t *testing.T) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		// path makes what is to be opened, in a directory of this user alone.
		path func(dir string) string
		want error // nil: it opens
		text string
	}{
		"a file": {func(dir string) string { return dir + "/disk" }, nil, ""},
		"a file that others can write": {func(dir string) string {
			check(os.Chmod(dir+"/disk", 0o666))
			return dir + "/disk"
		}, nil, ""},
		"below a sticky directory": {func(dir string) string {
			check(os.Mkdir(dir+"/tmp", 0o700))
			check(os.Mkdir(dir+"/tmp/own", 0o700))
			check(os.Rename(dir+"/disk", dir+"/tmp/own/disk"))
			check(os.Chmod(dir+"/tmp", 0o777|os.ModeSticky))
			return dir + "/tmp/own/disk"
		}, nil, ""},
		"in a sticky directory": {func(dir string) string {
			check(os.Chmod(dir, 0o777|os.ModeSticky))
			return dir + "/disk"
		}, oci.ErrInvalid, "other users can write to the directory"},
		"in a directory of a group": {func(dir string) string {
			check(os.Chmod(dir, 0o770))
			return dir + "/disk"
		}, oci.ErrInvalid, "chmod go-w"},
		"below a directory of all": {func(dir string) string {
			check(os.Mkdir(dir+"/own", 0o700))
			check(os.Rename(dir+"/disk", dir+"/own/disk"))
			check(os.Chmod(dir, 0o777))
			return dir + "/own/disk"
		}, oci.ErrInvalid, "other users can write to the directory"},
		"a symbolic link": {func(dir string) string {
			check(os.Symlink("disk", dir+"/link"))
			return dir + "/link"
		}, oci.ErrInvalid, "name the file itself, "},
		"a symbolic link to nothing": {func(dir string) string {
			check(os.Symlink("nothing", dir+"/link"))
			return dir + "/link"
		}, oci.ErrInvalid, "is a symbolic link"},
		"through a linked directory": {func(dir string) string {
			check(os.Mkdir(dir+"/a", 0o700))
			check(os.Rename(dir+"/disk", dir+"/a/disk"))
			check(os.Symlink("a", dir+"/b"))
			return dir + "/b/disk"
		}, oci.ErrInvalid, "name the file itself"},
		"through /proc": {func(string) string { return "/proc/self/exe" }, oci.ErrInvalid, "symbolic link"},
		"nothing":       {func(dir string) string { return dir + "/nothing" }, oci.ErrNotFound, "no file"},
		"in nothing":    {func(dir string) string { return dir + "/nothing/disk" }, oci.ErrNotFound, "no directory"},
		"in a file":     {func(dir string) string { return dir + "/disk/disk" }, oci.ErrNotFound, "no file"},
		"a directory":   {func(dir string) string { return dir }, oci.ErrInvalid, "not a regular file"},
		"a device":      {func(string) string { return "/dev/zero" }, oci.ErrInvalid, "not a regular file"},
		"a FIFO": {func(dir string) string {
			check(unix.Mkfifo(dir+"/fifo", 0o600))
			return dir + "/fifo"
		}, oci.ErrInvalid, "not a regular file"},
	}
	if os.Geteuid() == 0 {
		tests["in a directory of another user"] = struct {
			path func(dir string) string
			want error
			text string
		}{func(dir string) string {
			check(os.Chown(dir, 65534, 65534))
			return dir + "/disk"
		}, oci.ErrInvalid, "belongs to another user"}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			check(os.Mkdir(dir, 0o700))
			check(os.WriteFile(dir+"/disk", []byte("content"), 0o600))
			path := test.path(dir)
			done := make(chan error, 1)
			go func() {
				f, err := open(path)
				if err == nil {
					err = f.Close()
				}
				done <- err
			}()
			var err error
			select {
			case err = <-done:
			case <-time.After(time.Minute):
				t.Fatal("it hangs")
			}
			if !errors.Is(err, test.want) || test.want != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %v with %q", err, test.want, test.text)
			}
		})
	}
}
