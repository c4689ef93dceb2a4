package unpack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// maxReused is the maximum size of chunks that are reused, in bytes: they are verified in
// memory.
const maxReused = format.MaxChunkSize

// A storedChunk is a chunk in a disk of an image in the store.
type storedChunk struct {
	Disk   string        `json:"disk"`
	Offset int64         `json:"offset"`
	Size   int64         `json:"size"`
	Digest digest.Digest `json:"digest"`

	dir string
}

// A chunkIndex finds stored chunks by digest. A nil index is empty.
type chunkIndex struct {
	chunks map[digest.Digest]storedChunk

	mu    sync.Mutex
	files map[string]*os.File // open files by path; nil if a file cannot be opened
}

// findChunks finds the chunks of a plan in the images below the directory images. It needs no
// locks: a removed image is not found, or its open files stay readable.
func findChunks(images string, plan *format.Plan) *chunkIndex {
	wanted := map[digest.Digest]bool{}
	for _, disk := range plan.Disks {
		for _, stream := range disk.Streams {
			if stream.Digest != "" && stream.Size > 0 && stream.Size <= maxReused {
				wanted[stream.Digest] = true
			}
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	index := &chunkIndex{chunks: map[digest.Digest]storedChunk{}, files: map[string]*os.File{}}
	tables, _ := filepath.Glob(filepath.Join(images, "*", oci.ChunkFile))
	for _, table := range tables {
		for _, p := range readChunkTable(table) {
			if wanted[p.Digest] {
				index.chunks[p.Digest] = p
			}
		}
	}
	return index
}

// readChunkTable returns nil for an unreadable table; its chunks are transferred again.
func readChunkTable(path string) []storedChunk {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var table []storedChunk
	if json.Unmarshal(raw, &table) != nil {
		return nil
	}
	for i := range table {
		table[i].dir = filepath.Dir(path)
	}
	return table
}

func (u *unpacker) writeChunkTable(disks []oci.Disk) error {
	var table []storedChunk
	for i, disk := range u.plan.Disks {
		for _, s := range disk.Streams {
			if s.Digest != "" && s.Size > 0 && s.Size <= maxReused {
				table = append(table, storedChunk{Disk: disks[i].Name, Offset: s.Offset, Size: s.Size, Digest: s.Digest})
			}
		}
	}
	if table == nil {
		return nil
	}
	raw, err := json.Marshal(table)
	if err == nil {
		err = fileutil.WriteSynced(filepath.Join(u.dir, oci.ChunkFile), raw)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", oci.ChunkFile, err)
	}
	return nil
}

// has reports whether any chunk of the plan is in the store.
func (x *chunkIndex) has(*format.Plan) bool { return x != nil && len(x.chunks) > 0 }

// reuse copies a chunk from another image, if one has it. They share blocks if the file
// system can.
func (x *chunkIndex) reuse(p *chunk) (done bool, err error) {
	if x == nil {
		return false, nil
	}
	stored, ok := x.chunks[p.stream.Digest]
	if !ok || stored.Size != p.stream.Size || stored.Offset < 0 || filepath.Base(stored.Disk) != stored.Disk {
		return false, nil
	}
	from := x.open(filepath.Join(stored.dir, stored.Disk))
	if from == nil {
		return false, nil
	}
	content := make([]byte, stored.Size)
	if _, err := from.ReadAt(content, stored.Offset); err != nil && !errors.Is(err, io.EOF) {
		return false, nil
	}
	if p.stream.Digest.Algorithm().FromBytes(content) != p.stream.Digest {
		return false, nil // a rewritten header, or a faulty disk
	}
	if cloneRange(p.file, p.stream.Offset, from, stored.Offset, stored.Size) == nil {
		return true, nil
	}
	out := p.writer()
	_, err = out.Write(content)
	out.StartWriteback()
	return err == nil, err
}

// open opens each file once.
func (x *chunkIndex) open(path string) *os.File {
	x.mu.Lock()
	defer x.mu.Unlock()
	f, ok := x.files[path]
	if !ok {
		f, _ = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		x.files[path] = f
	}
	return f
}

func (x *chunkIndex) Close() error {
	if x == nil {
		return nil
	}
	var err error
	for _, f := range x.files {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// cloneRange makes a range of to share blocks with a range of from (btrfs, XFS, bcachefs,
// NFS 4.2). Base disks never change after their content was verified.
func cloneRange(to *os.File, toOffset int64, from *os.File, fromOffset, size int64) error {
	return unix.IoctlFileCloneRange(int(to.Fd()), &unix.FileCloneRange{
		Src_fd: int64(from.Fd()), Src_offset: uint64(fromOffset), Src_length: uint64(size), Dest_offset: uint64(toOffset),
	})
}
