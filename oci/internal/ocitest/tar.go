package ocitest

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
)

// A TarEntry is a file, a directory if its name ends in a slash, or a link.
type TarEntry struct {
	Name, Content, Link string
	Hard                bool // whether Link is a hard link
}

func TarOf(t *testing.T, entries ...TarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Mode: 0o444, Size: int64(len(e.Content)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(e.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if e.Link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		}
		if e.Hard {
			h.Typeflag = tar.TypeLink
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.Content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
