package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/transfer"
)

// A small file system, whose free space is what was not written yet.
type smallFS struct {
	total, free int64
	asked       atomic.Int64
}

func (s *smallFS) room(dir string) (space.Room, error) {
	s.asked.Add(1)
	used, err := diskusage.OfDir(context.Background(), dir)
	return space.Room{Free: s.free - used, Total: s.total}, err
}

// TestStorageReserve: unpacking ends before the reserve is touched, whatever the
// format, and leaves nothing.
func TestStorageReserve(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	disk := append(ocitest.Qcow2File(t), 0)
	content := append([]byte{0}, bytes.Repeat(ocitest.Noise(1<<10), 12<<10)...)
	for name, image := range map[string]func(l ocitest.TestLayout) oci.Reference{
		"gzip": func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, packed(t, "gzip", content, 0)))
		},
		"containerdisk": func(l ocitest.TestLayout) oci.Reference {
			return l.Named(l.Container("{}", packed(t, "zstd", ocitest.TarOf(t, ocitest.TarEntry{Name: "disk/a", Content: string(content)}), 0)))
		},
		"chunks": func(l ocitest.TestLayout) oci.Reference {
			return newChunkedImage(l, content, format.MaxChunkSize).write()
		},
		"two disks": func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "a.qcow2", disk)), l.Blob(ocitest.RawLayer, packed(t, "gzip", content, 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, ref := newStore(t), image(ocitest.NewLayout(t))
			small := &smallFS{total: 100 * mib, free: 16 * mib}
			_, err := store.Pull(t.Context(), ref, PullOptions{Architecture: "amd64", Reserve: space.Reserve{Bytes: mib, Percent: 10}, room: small.room})
			if !errors.Is(err, syscall.ENOSPC) || oci.IsPermanent(err) || !strings.Contains(err.Error(), "storage_reserve: 10MiB must stay free on "+filepath.Join(store.Root(), imagesDir)) {
				t.Fatalf("got %v, want that the reserve is reached", err)
			}
			if small.asked.Load() < 3 {
				t.Errorf("asked %d times", small.asked.Load())
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
			small.free = 30 * mib
			if _, err := store.Pull(t.Context(), ref, PullOptions{Architecture: "amd64", Reserve: space.Reserve{Bytes: mib, Percent: 10}, room: small.room}); err != nil {
				t.Errorf("with more room: %v", err)
			}
		})
	}
}

// TestZeroesTakeNoRoom: holes do not count.
func TestZeroesTakeNoRoom(t *testing.T) {
	t.Parallel()
	l := ocitest.NewLayout(t)
	ref := l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "a.raw", make([]byte, 24<<20))))
	small := &smallFS{total: 100 << 20, free: 11 << 20}
	image, err := newStore(t).Pull(t.Context(), ref, PullOptions{Reserve: space.Reserve{Percent: 10}, room: small.room})
	if err != nil {
		t.Fatal(err)
	}
	if n := usageOf(t, filepath.Join(image.Dir, "a.raw")); n > 64<<10 {
		t.Errorf("%d bytes are taken", n)
	}
}

// TestReserveBeforePull: an image that would touch the reserve is not transferred.
func TestReserveBeforePull(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	ref := pushRaw(t, f.Host, ocitest.Noise(4<<20), 0)
	f.Sent.Store(0)
	small := &smallFS{total: 100 << 20, free: 13 << 20}
	_, err := newStore(t).Pull(t.Context(), ref, PullOptions{Reserve: space.Reserve{Percent: 10}, room: small.room})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "storage_reserve: 10MiB must stay free") || !strings.Contains(err.Error(), "needs about 3.99") {
		t.Errorf("got %v", err)
	}
	if f.Sent.Load() > 8192 {
		t.Errorf("%d bytes were transferred in vain", f.Sent.Load())
	}
}

// TestParallelPullsAndReserve: of two pulls that do not both fit, the one that began
// first does.
func TestParallelPullsAndReserve(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	first := pushRaw(t, f.Host, ocitest.Noise(4<<20), 0)
	store := newStore(t)
	small := &smallFS{total: 100 << 20, free: 18 << 20}
	o := PullOptions{Reserve: space.Reserve{Percent: 10}, room: small.room}
	partial := filepath.Join(store.Root(), imagesDir, space.PartialPrefix+"sha256-"+strings.Repeat("0", 64))
	if err := os.Mkdir(partial, 0o755); err != nil {
		t.Fatal(err)
	}
	other := space.Announce(partial, 10<<20)
	_, err := store.Pull(t.Context(), first, o)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "other pulls under way") {
		t.Errorf("beside another: %v", err)
	}
	// One that has died does not count.
	if err := other.Lock.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), first, o); err != nil {
		t.Errorf("beside one that has died: %v", err)
	}
}

// TestReserveOnTmpfs: a real file system, which is not the one of /.
func TestReserveOnTmpfs(t *testing.T) {
	t.Parallel()
	small := ocitest.Mounted(t, "tmpfs", "size=16m")
	store, err := Open(filepath.Join(small, "store"))
	if err != nil {
		t.Fatal(err)
	}
	l := ocitest.NewLayout(t)
	ref := l.SardinecakeOf(l.Blob(ocitest.RawLayer, packed(t, "gzip", nil, 20<<20)))
	_, err = store.Pull(t.Context(), ref, PullOptions{Reserve: space.Reserve{Percent: 25}})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "storage_reserve: 4MiB must stay free on "+small) {
		t.Errorf("got %v, want that the reserve is reached", err)
	}
	room, err := space.Of(small)
	if err != nil || room.Total != 16<<20 || room.Free < 15<<20 {
		t.Errorf("left behind: %+v, %v", room, err)
	}
}

// TestCheckBeforePull: who knows more than this package says no before the disks come.
func TestCheckBeforePull(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	l := ocitest.NewLayout(t)
	from := l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "a.qcow2", append(ocitest.Qcow2File(t), ocitest.Noise(4<<20)...))))
	ref := ocitest.MustParse(t, f.Host+"/vms/image:1")
	d, err := transfer.Push(t.Context(), from, ref, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.Sent.Store(0)
	no := errors.New("no")
	var seen *oci.Inspection
	store := newStore(t)
	_, err = store.Pull(t.Context(), ref, PullOptions{Check: func(i *oci.Inspection) error { seen = i; return no }})
	if !errors.Is(err, no) || f.Sent.Load() > 8192 {
		t.Errorf("got %v, want no; %d bytes came", err, f.Sent.Load())
	}
	if seen == nil || seen.Digest != d || seen.Architecture != "amd64" || string(seen.DomainXML) != "<domain/>" || len(seen.Disks) != 1 || seen.Disks[0].Content != "qcow2" || seen.Reference != ref.String() {
		t.Errorf("seen %+v", seen)
	}
	ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
	if _, err := store.Pull(t.Context(), ref, PullOptions{Check: func(*oci.Inspection) error { return nil }}); err != nil {
		t.Error(err)
	}
	// What is there was judged.
	if _, err := store.Pull(t.Context(), ref, PullOptions{Check: func(*oci.Inspection) error { return no }}); err != nil {
		t.Error(err)
	}
}
