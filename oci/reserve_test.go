package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"gitlab-sardine-executor/oci/format"
)

// A small file system, whose free space is what was not written yet.
type smallFS struct {
	total, free int64
	asked       atomic.Int64
}

func (s *smallFS) room(dir string) (Room, error) {
	s.asked.Add(1)
	return Room{Free: s.free - blocksIn(dir), Total: s.total}, nil
}

// TestStorageReserve: unpacking ends before the reserve is touched, whatever the
// format, and leaves nothing.
func TestStorageReserve(t *testing.T) {
	const mib = 1 << 20
	disk := append(qcow2File(t), 0)
	content := append([]byte{0}, compressible(32*mib)...)
	for name, image := range map[string]func(l testLayout) Reference{
		"gzip": func(l testLayout) Reference { return l.sardinecakeOf(l.blob(rawLayer, packed(t, "gzip", content, 0))) },
		"containerdisk": func(l testLayout) Reference {
			return l.named(l.container("{}", packed(t, "zstd", tarOf(t, tarEntry{name: "disk/a", content: string(content)}), 0)))
		},
		"chunks": func(l testLayout) Reference { return newChunkedImage(l, content, format.MaxChunkSize).write() },
		"two disks": func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "a.qcow2", disk)), l.blob(rawLayer, packed(t, "gzip", content, 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			store, ref := newStore(t), image(newLayout(t))
			small := &smallFS{total: 100 * mib, free: 30 * mib}
			_, err := store.Pull(t.Context(), ref, PullOptions{Architecture: "amd64", Reserve: Reserve{Bytes: mib, Percent: 10}, room: small.room})
			if !errors.Is(err, syscall.ENOSPC) || Final(err) || !strings.Contains(err.Error(), "storage_reserve: 10MiB must stay free on "+filepath.Join(store.Root(), imagesDir)) {
				t.Fatalf("got %v, want that the reserve is reached", err)
			}
			if small.asked.Load() < 3 {
				t.Errorf("asked %d times", small.asked.Load())
			}
			assertEmpty(t, filepath.Join(store.Root(), imagesDir))
			small.free = 50 * mib
			if _, err := store.Pull(t.Context(), ref, PullOptions{Architecture: "amd64", Reserve: Reserve{Bytes: mib, Percent: 10}, room: small.room}); err != nil {
				t.Errorf("with more room: %v", err)
			}
		})
	}
}

// TestZeroesTakeNoRoom: holes do not count.
func TestZeroesTakeNoRoom(t *testing.T) {
	l := newLayout(t)
	ref := l.sardinecakeOf(l.blob(rawLayer, zipped(t, "a.raw", make([]byte, 100<<20))))
	small := &smallFS{total: 100 << 20, free: 11 << 20}
	image, err := newStore(t).Pull(t.Context(), ref, PullOptions{Reserve: Reserve{Percent: 10}, room: small.room})
	if err != nil {
		t.Fatal(err)
	}
	if n := blocksOf(t, filepath.Join(image.Dir, "a.raw")); n > 64<<10 {
		t.Errorf("%d bytes are taken", n)
	}
}

// TestReserveBeforePull: an image that would touch the reserve is not transferred.
func TestReserveBeforePull(t *testing.T) {
	f := newFaultyRegistry(t)
	ref := pushRaw(t, f.host, noise(12<<20), 0)
	f.sent.Store(0)
	small := &smallFS{total: 100 << 20, free: 20 << 20}
	_, err := newStore(t).Pull(t.Context(), ref, PullOptions{Reserve: Reserve{Percent: 10}, room: small.room})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "storage_reserve: 10MiB must stay free") || !strings.Contains(err.Error(), "needs about 12") {
		t.Errorf("got %v", err)
	}
	if f.sent.Load() > 8192 {
		t.Errorf("%d bytes were transferred in vain", f.sent.Load())
	}
}

// TestParallelPullsAndReserve: of two pulls that do not both fit, the one that began
// first does.
func TestParallelPullsAndReserve(t *testing.T) {
	f := newFaultyRegistry(t)
	first := pushRaw(t, f.host, noise(12<<20), 0)
	store := newStore(t)
	small := &smallFS{total: 100 << 20, free: 28 << 20}
	o := PullOptions{Reserve: Reserve{Percent: 10}, room: small.room}
	partial := filepath.Join(store.Root(), imagesDir, partialPrefix+"sha256-"+strings.Repeat("0", 64))
	if err := os.Mkdir(partial, 0o755); err != nil {
		t.Fatal(err)
	}
	other := announce(partial, 10<<20)
	_, err := store.Pull(t.Context(), first, o)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "other pulls under way") {
		t.Errorf("beside another: %v", err)
	}
	// One that has died does not count, nor one that began later.
	if err := other.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if n := announce(t.TempDir(), 1).earlier(); n != 0 {
		t.Errorf("in another store: %d", n)
	}
	if _, err := store.Pull(t.Context(), first, o); err != nil {
		t.Errorf("beside one that has died: %v", err)
	}
	early := &announcement{Since: time.Now().Add(-time.Hour), lock: flock.New(filepath.Join(store.Root(), imagesDir, partialPrefix+"x", pullFile))}
	late := announce(partial, 10<<20)
	if n := early.earlier(); n != 0 {
		t.Errorf("one that began later counts: %d bytes", n)
	}
	if err := late.end(); err != nil {
		t.Error(err)
	}
}

// TestReserveOnTmpfs: a real file system, which is not the one of /.
func TestReserveOnTmpfs(t *testing.T) {
	small := mounted(t, "tmpfs", "size=64m")
	store, err := OpenStore(filepath.Join(small, "store"))
	if err != nil {
		t.Fatal(err)
	}
	l := newLayout(t)
	ref := l.sardinecakeOf(l.blob(rawLayer, packed(t, "gzip", nil, 200<<20)))
	_, err = store.Pull(t.Context(), ref, PullOptions{Reserve: Reserve{Percent: 25}})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "storage_reserve: 16MiB must stay free on "+small) {
		t.Errorf("got %v, want that the reserve is reached", err)
	}
	room, err := RoomOf(small)
	if err != nil || room.Total != 64<<20 || room.Free < 60<<20 {
		t.Errorf("left behind: %+v, %v", room, err)
	}
}

// TestCheckBeforePull: who knows more than this package says no before the disks come.
func TestCheckBeforePull(t *testing.T) {
	f := newFaultyRegistry(t)
	l := newLayout(t)
	from := l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "a.qcow2", append(qcow2File(t), noise(4<<20)...))))
	ref := mustParse(t, f.host+"/vms/image:1")
	d, err := Push(t.Context(), from, ref, TransferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.sent.Store(0)
	no := errors.New("no")
	var seen *Inspection
	store := newStore(t)
	_, err = store.Pull(t.Context(), ref, PullOptions{Check: func(i *Inspection) error { seen = i; return no }})
	if !errors.Is(err, no) || f.sent.Load() > 8192 {
		t.Errorf("got %v, want no; %d bytes came", err, f.sent.Load())
	}
	if seen == nil || seen.Digest != d || seen.Architecture != "amd64" || string(seen.DomainXML) != "<domain/>" || len(seen.Disks) != 1 || seen.Disks[0].Content != "qcow2" || seen.Reference != ref.String() {
		t.Errorf("seen %+v", seen)
	}
	assertEmpty(t, filepath.Join(store.Root(), imagesDir))
	if _, err := store.Pull(t.Context(), ref, PullOptions{Check: func(*Inspection) error { return nil }}); err != nil {
		t.Error(err)
	}
	// What is there was judged.
	if _, err := store.Pull(t.Context(), ref, PullOptions{Check: func(*Inspection) error { return no }}); err != nil {
		t.Error(err)
	}
}
