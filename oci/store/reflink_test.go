package store

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// TestChunkedShares: on a file system that can, two versions of an image share
// what is equal in them.
func TestChunkedShares(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop devices: ", err)
	}
	for _, fs := range []string{"btrfs", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			if _, err := exec.LookPath("mkfs." + fs); err != nil {
				t.Skip(err)
			}
			dir := t.TempDir()
			mount := filepath.Join(dir, "mount")
			if err := os.Mkdir(mount, 0o755); err != nil {
				t.Fatal(err)
			}
			ocitest.Command(t, dir, "truncate", "-s", "400M", "disk")
			ocitest.Command(t, dir, "mkfs."+fs, "-q", "disk")
			ocitest.Command(t, dir, "mount", "-o", "loop", "disk", mount)
			t.Cleanup(func() { ocitest.Command(t, dir, "umount", mount) })
			store, err := Open(filepath.Join(mount, "store"))
			if err != nil {
				t.Fatal(err)
			}
			content := ocitest.Noise(8 << 20)
			for version := range 2 {
				content[5<<20] = byte(version)
				ref, _ := exportRaw(t, content, export.Options{Format: format.Chunked, ChunkSize: 1 << 20})
				image, err := store.Pull(t.Context(), ref, PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				ocitest.CheckContent(t, image, content)
				if err := image.Close(); err != nil { // its lock lies there
					t.Error(err)
				}
				shared := strings.Count(ocitest.Command(t, dir, "filefrag", "-v", filepath.Join(image.Dir, "disk.raw")), "shared")
				if (shared > 0) != (version == 1) {
					t.Errorf("version %d shares %d extents", version+1, shared)
				}
			}
		})
	}
}
