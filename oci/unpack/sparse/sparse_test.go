package sparse

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/readers"
)

func TestSparseWriter(t *testing.T) {
	content := make([]byte, 1<<20+17)
	for _, at := range []int{0, 4095, 4096, 70000, 1<<20 + 3} {
		content[at] = 1
	}
	for _, step := range []int{1000, 4096, 65536, len(content)} {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		if err != nil {
			t.Fatal(err)
		}
		w := &Writer{To: &Writeback{File: f}, Limit: int64(len(content))}
		_, err = io.CopyBuffer(struct{ io.Writer }{w}, readers.Only(bytes.NewReader(content)), make([]byte, step))
		if err := errors.Join(err, w.Finish(), f.Close()); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("steps of %d: content differs (%v)", step, err)
		}
		if _, err := w.Write([]byte{0}); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("beyond the limit: %v", err)
		}
	}
}
