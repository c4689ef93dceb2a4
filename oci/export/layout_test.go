package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/store"
)

// An interrupter is a Progress that does something after so many bytes.
type interrupter struct {
	mu    sync.Mutex
	after int64
	do    func()
}

func (i *interrupter) Waiting(string)                   {}
func (i *interrupter) Start(string, int64) oci.Transfer { return i }
func (i *interrupter) Done(error)                       {}
func (i *interrupter) Add(n int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.after > 0 && i.after <= n {
		i.do()
	}
	i.after -= n
}

var bothFormats = []string{format.Sardinecake, format.Chunked}

// rawDisk writes a file with noise.
func rawDisk(t *testing.T, size int) []Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, ocitest.Noise(size), 0o644); err != nil {
		t.Fatal(err)
	}
	return []Disk{{Path: path, Format: "raw"}}
}

// TestExportInterrupted: a layout is what it was before, and one that was to be made
// is not there.
func TestExportInterrupted(t *testing.T) {
	t.Parallel()
	for _, f := range bothFormats {
		t.Run(f, func(t *testing.T) {
			layout := filepath.Join(t.TempDir(), "layout")
			to := ocitest.MustParse(t, "oci:"+layout+":1")
			interrupted := func() {
				t.Helper()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				o := Options{Disks: rawDisk(t, 4<<20), Format: f, ChunkSize: 256 << 10, Progress: &interrupter{after: 2 << 20, do: cancel}}
				if _, err := Export(ctx, to, o); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want that it was cancelled", err)
				}
			}
			interrupted()
			if _, err := os.Stat(layout); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a layout is left: %v", err)
			}
			d, err := Export(t.Context(), to, Options{Disks: rawDisk(t, 1<<20), Format: f})
			if err != nil {
				t.Fatal(err)
			}
			was := ocitest.BlobNames(t, layout)
			interrupted()
			if diff := cmp.Diff(was, ocitest.BlobNames(t, layout)); diff != "" {
				t.Error(diff)
			}
			checkLayout(t, layout, "1", d)
		})
	}
}

// TestExportProcess is no test: it is the process that others start to export.
func TestExportProcess(t *testing.T) {
	t.Parallel()
	disk := os.Getenv("OCI_TEST_DISK")
	if disk == "" {
		return
	}
	killed := &interrupter{after: 2 << 20, do: func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) }}
	o := Options{Disks: []Disk{{Path: disk}}, Format: os.Getenv("OCI_TEST_FORMAT"), ChunkSize: 256 << 10, Progress: killed}
	if _, err := Export(t.Context(), ocitest.MustParse(t, os.Getenv("OCI_TEST_EXPORT")), o); err != nil {
		t.Fatal(err)
	}
}

// TestExportKilled kills a process in the middle of an export: the layout leads to
// what it led to before, and the next export finds nothing in its way.
func TestExportKilled(t *testing.T) {
	t.Parallel()
	for _, f := range bothFormats {
		t.Run(f, func(t *testing.T) {
			layout := filepath.Join(t.TempDir(), "layout")
			to := ocitest.MustParse(t, "oci:"+layout+":1")
			d, err := Export(t.Context(), to, Options{Disks: rawDisk(t, 1<<20), Format: f})
			if err != nil {
				t.Fatal(err)
			}
			was, err := os.ReadFile(filepath.Join(layout, "index.json"))
			if err != nil {
				t.Fatal(err)
			}
			disks := rawDisk(t, 4<<20)
			cmd := exec.Command(os.Args[0], "-test.run=^TestExportProcess$", "-test.timeout=2m")
			cmd.Env = append(os.Environ(), "OCI_TEST_EXPORT="+to.String(), "OCI_TEST_DISK="+disks[0].Path, "OCI_TEST_FORMAT="+f)
			var exit *exec.ExitError
			if out, err := cmd.CombinedOutput(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the process was not killed: %v\n%s", err, out)
			}
			if entries, err := os.ReadDir(filepath.Join(layout, ".partial")); err != nil {
				t.Errorf("it was killed before it wrote something: %v, %v", entries, err)
			}
			if now, err := os.ReadFile(filepath.Join(layout, "index.json")); err != nil || !bytes.Equal(was, now) {
				t.Errorf("index.json is %s, %v; it was %s", now, err, was)
			}
			second, err := Export(t.Context(), ocitest.MustParse(t, "oci:"+layout+":2"), Options{Disks: disks, Format: f})
			if err != nil {
				t.Fatal(err)
			}
			checkLayout(t, layout, "1", d)
			checkLayout(t, layout, "2", second)
		})
	}
}

// TestExportAtOnce exports to one layout, which is not there yet, from all sides.
// Those that fail remove it again, if they are the first, and take nothing from
// the others.
func TestExportAtOnce(t *testing.T) {
	t.Parallel()
	layout := filepath.Join(t.TempDir(), "layout")
	disks := rawDisk(t, 2<<20)
	bounded, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	const exports = 24
	digests := make([]string, exports)
	var group sync.WaitGroup
	for i := range exports {
		group.Go(func() {
			ctx, cancel := context.WithCancel(bounded)
			defer cancel()
			o := Options{Disks: disks, Format: bothFormats[i/2%2]}
			if i%2 == 1 {
				o.Progress = &interrupter{after: 1 << 20, do: cancel}
			}
			d, err := Export(ctx, ocitest.MustParse(t, fmt.Sprintf("oci:%s:%d", layout, i)), o)
			if (err == nil) != (i%2 == 0) {
				t.Errorf("export %d: %v", i, err)
			}
			digests[i] = d.String()
		})
	}
	group.Wait()
	tags := strings.Fields(ocitest.Command(t, ".", "umoci", "list", "--layout", layout))
	if len(tags) != exports/2 {
		t.Errorf("tags %v, want every even number below %d", tags, exports)
	}
	images := newStore(t)
	for i := 0; i < exports; i += 2 {
		image, err := images.Pull(t.Context(), ocitest.MustParse(t, fmt.Sprintf("oci:%s:%d", layout, i)), store.PullOptions{})
		if err != nil || image.Digest.String() != digests[i] {
			t.Errorf("tag %d: %+v, %v; want %s", i, image, err, digests[i])
		}
	}
}

// TestExportOverTag: a tag that two entries have, which the Python tool leaves
// behind, is one afterwards, and every tool finds the same image.
func TestExportOverTag(t *testing.T) {
	t.Parallel()
	layout := filepath.Join(t.TempDir(), "layout")
	if err := os.CopyFS(layout, os.DirFS(filepath.Join("..", "testdata", "sardinecake", "multitag", "oci"))); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(layout, "index.json")
	raw, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index, bytes.ReplaceAll(raw, []byte(`"v1"`), []byte(`"v2"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := Export(t.Context(), ocitest.MustParse(t, "oci:"+layout+":v2"), Options{Disks: rawDisk(t, 1<<20)})
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, layout, "v2", d)
}

// TestExportDiskFull leaves nothing, and says how much might be needed.
func TestExportDiskFull(t *testing.T) {
	t.Parallel()
	small := ocitest.Mounted(t, "tmpfs", "size=1m")
	for _, f := range bothFormats {
		to := ocitest.MustParse(t, "oci:"+filepath.Join(small, "layout"))
		_, err := Export(t.Context(), to, Options{Disks: rawDisk(t, 4<<20), Format: f})
		if !errors.Is(err, syscall.ENOSPC) || oci.IsPermanent(err) || !strings.Contains(err.Error(), "4MiB may be needed") {
			t.Errorf("%s: got %v, want that the disk is full", f, err)
		}
		ocitest.AssertEmpty(t, small)
	}
}

// TestLayoutRemade: whoever waited for a layout that its writer removed does not
// take the removed directory for the one that a third made since.
func TestLayoutRemade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dir")
	first, err := layout.OpenWriter(t.Context(), dir, "1", func() {})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	var third *layout.Writer
	second, err := layout.OpenWriter(t.Context(), dir, "2", func() {
		if err := first.Discard(); err != nil {
			t.Error(err)
		}
		var err error
		if third, err = layout.OpenWriter(t.Context(), dir, "3", func() {}); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		go func() {
			time.Sleep(250 * time.Millisecond) // so that it could be had too soon
			_, _, err := third.AddBlob(t.Context(), strings.NewReader("content"))
			done <- err
			third.Close()
		}()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	default:
		t.Error("two write at the same time")
	}
}
