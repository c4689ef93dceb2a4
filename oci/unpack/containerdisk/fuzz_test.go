package containerdisk

import (
	"bytes"
	"io"
	"path"
	"testing"

	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// FuzzTree looks for the disk in any two tar archives, one upon the other.
func FuzzTree(f *testing.F) {
	f.Add([]byte(nil), []byte(nil))
	t := &testing.T{}
	f.Add(ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Content: "hello"}), ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/.wh.a"}, ocitest.TarEntry{Name: "./disk/b", Content: "x"}))
	f.Add(ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/"}, ocitest.TarEntry{Name: "/disk/a", Content: "hello"}), ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/.wh..wh..opq"}, ocitest.TarEntry{Name: "disk/l", Link: "a"}))
	f.Add(ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/l", Link: "../../x"}, ocitest.TarEntry{Name: "disk/m", Link: "/disk/l", Hard: true}), ocitest.TarOf(t, ocitest.TarEntry{Name: "a.img", Content: "x"}))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		written := 0
		finder := New(&format.ContainerDisk{Path: "disk", Directory: true}, func(name string, size int64, content io.Reader) error {
			if written++; written > 1 || name != path.Base(name) {
				t.Errorf("file %d: %q", written, name)
			}
			_, err := io.CopyN(io.Discard, content, min(size, 1<<20))
			return err
		})
		for _, layer := range [][]byte{upper, lower} {
			if err := finder.Read(bytes.NewReader(layer)); err != nil {
				return
			}
		}
		for _, name := range finder.found {
			if path.Dir(name) != "disk" {
				t.Errorf("found %q", name)
			}
		}
		for _, target := range finder.targets() {
			if target == "" || path.Clean("/"+target) != "/"+target {
				t.Errorf("a link to %q", target)
			}
		}
		if next, err := finder.Next(); err == nil && next == nil && written != 1 {
			t.Errorf("found %q, and wrote %d", finder.found, written)
		}
	})
}
