package diskusage

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestOfDir compares with du. A sparse file, a file of a few bytes, a link out of the
// directory and a directory are all counted as du counts them.
func TestOfDir(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	err := errors.Join(
		os.WriteFile(outside, make([]byte, 1<<20), 0o600),
		os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700),
		os.WriteFile(filepath.Join(dir, "a", "small"), []byte("x"), 0o600),
		os.WriteFile(filepath.Join(dir, "a", "b", "full"), make([]byte, 300_000), 0o600),
		os.WriteFile(filepath.Join(dir, "sparse"), nil, 0o600),
		os.Truncate(filepath.Join(dir, "sparse"), 1<<40),
		os.Symlink(outside, filepath.Join(dir, "link")),
		os.Symlink("/", filepath.Join(dir, "a", "root")),
	)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("du", "--block-size=1", "--summarize", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OfDir(t.Context(), dir); err != nil || got != want {
		t.Errorf("%d, %v; du says %d", got, err, want)
	}
	if got, err := OfFile(filepath.Join(dir, "sparse")); err != nil || got > 1<<20 {
		t.Errorf("the sparse file: %d, %v", got, err)
	}
}

func TestOfDirEnds(t *testing.T) {
	if got, err := OfDir(t.Context(), filepath.Join(t.TempDir(), "none")); err != nil || got != 0 {
		t.Errorf("no directory: %d, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := OfDir(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := OfFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
