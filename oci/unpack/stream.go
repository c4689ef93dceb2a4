package unpack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/oci/chain"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/unpack/blobreader"
	"gitlab-sardine-executor/oci/unpack/decompress"
	"gitlab-sardine-executor/oci/unpack/sparse"
)

// Buffers between decompression and the goroutine that writes.
const (
	plainBuffers = 4
	plainBuffer  = 1 << 20
)

// A diskState is stored beside a disk of one stream, for the pull that resumes. It is only
// used if the disk has the digest.
type diskState struct {
	Name string `json:"name,omitempty"` // in the gzip header
	// Size and Digest of the part that is written.
	Size   int64         `json:"size"`
	Digest digest.Digest `json:"digest"`
	// Checkpoint is where to resume; nil if the disk is complete.
	Checkpoint *decompress.Checkpoint `json:"mark,omitempty"`
}

// A streamDisk is a disk of one stream, written sequentially.
type streamDisk struct {
	u      *unpacker
	number int
	file   *os.File
	stream format.Stream
	bound  *bound

	state diskState
	hash  hash.Hash // of the file up to state.Size
}

func (u *unpacker) statePath(i int) string {
	return filepath.Join(u.dir, chain.Unnamed(i)+".json")
}

// unpackStream writes a disk from its stream.
func (u *unpacker) unpackStream(ctx context.Context, i int, f *os.File, stream format.Stream) (diskState, error) {
	d := &streamDisk{u: u, number: i, file: f, stream: stream, bound: u.newBound(i)}
	if err := d.loadState(); err != nil {
		return diskState{}, err
	}
	if d.state.Size > 0 {
		if err := d.bound.resume(f); err != nil {
			return diskState{}, err
		}
	}
	if d.state.Size > 0 && d.state.Checkpoint == nil {
		return d.state, d.bound.finish(f)
	}
	if err := d.write(ctx); err != nil {
		return diskState{}, err
	}
	if err := d.bound.finish(f); err != nil {
		return diskState{}, err
	}
	d.state.Checkpoint = nil
	// Sync the data before the state that describes it.
	if err := f.Sync(); err != nil {
		return diskState{}, err
	}
	return d.state, d.saveState()
}

// loadState reads the state of an interrupted pull, if the disk matches it.
func (d *streamDisk) loadState() error {
	d.hash = digest.Canonical.Hash()
	raw, err := os.ReadFile(d.u.statePath(d.number))
	if err == nil && json.Unmarshal(raw, &d.state) == nil && d.verify() {
		return d.file.Truncate(d.state.Size)
	}
	d.state = diskState{}
	d.hash.Reset()
	return d.file.Truncate(0)
}

func (d *streamDisk) verify() bool {
	if d.state.Size <= 0 || d.state.Checkpoint != nil && d.state.Checkpoint.Raw != d.state.Size {
		return false
	}
	n, err := io.Copy(d.hash, io.NewSectionReader(d.file, 0, d.state.Size))
	return err == nil && n == d.state.Size && d.sum() == d.state.Digest
}

func (d *streamDisk) sum() digest.Digest { return digest.NewDigest(digest.Canonical, d.hash) }

// saveState stores the state for a pull that resumes.
func (d *streamDisk) saveState() error {
	raw, err := json.Marshal(d.state)
	if err != nil {
		return err
	}
	path := d.u.statePath(d.number)
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// write decompresses in one goroutine and writes in another.
func (d *streamDisk) write(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blobs, how, err := d.source(ctx)
	if err != nil {
		return err
	}
	defer blobs.Close()
	plain, err := how.OpenAhead(blobs)
	if err != nil {
		return blobs.Explain(err)
	}
	if d.state.Checkpoint == nil {
		d.state.Name = plain.Name()
		if err := d.u.checkName(d.number, d.state.Name); err != nil {
			cancel() // Close waits for what is being read
			return errors.Join(err, plain.Close())
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	full, empty := make(chan segment, plainBuffers), make(chan []byte, plainBuffers)
	group.Go(func() error {
		defer close(full)
		return produce(groupCtx, plain, full, empty)
	})
	var consumed error
	group.Go(func() error {
		if consumed = d.consume(full, empty); consumed != nil {
			cancel() // stop reading from the registry
		}
		return consumed
	})
	err = group.Wait()
	if consumed != nil {
		err = consumed // the cause of the cancellation
	}
	// Until Close, another goroutine reads blobs.
	if err := errors.Join(err, plain.Close()); err != nil {
		return blobs.Explain(err)
	}
	// The decompressor may stop before the end of the last blob, which must be verified.
	return blobs.Finish()
}

// source opens the stream at the checkpoint. A stream of several blobs has checkpoints in
// each, so that earlier blobs are not read again.
func (d *streamDisk) source(ctx context.Context) (*blobreader.Sequence, decompress.Options, error) {
	how := decompress.Options{Compression: d.stream.Compression, Window: decompress.ZstdWindow, Resume: d.state.Checkpoint}
	blobs := d.stream.Blobs
	var start int64 // of blobs[0] in the compressed stream
	if how.Resume != nil {
		for len(blobs) > 1 && start+blobs[0].Size <= how.Resume.Compressed {
			start += blobs[0].Size
			blobs = blobs[1:]
		}
	}
	how.WantCheckpoint = oncePerBlob(blobs, start)
	sequence := d.u.blobs(ctx, blobs)
	if how.Resume != nil {
		// Read the blob from its beginning, to verify its digest.
		if _, err := io.CopyN(io.Discard, readers.Only(sequence), how.Resume.Compressed-start); err != nil {
			return nil, how, errors.Join(err, sequence.Close())
		}
	}
	return sequence, how, nil
}

// oncePerBlob returns a function that is true for the first offset in each blob but the
// first.
func oncePerBlob(blobs []v1.Descriptor, start int64) func(int64) bool {
	if len(blobs) < 2 {
		return nil
	}
	end := start + blobs[0].Size // of the blob of the last checkpoint
	rest := blobs[1:]
	return func(offset int64) bool {
		if offset < end || len(rest) == 0 {
			return false
		}
		for len(rest) > 0 && offset >= end {
			end += rest[0].Size
			rest = rest[1:]
		}
		return true
	}
}

// A segment is a part of a decompressed stream.
type segment struct {
	bytes      []byte
	checkpoint *decompress.Checkpoint // after the bytes; may be nil
}

// produce reads a stream into segments. Their buffers are returned through empty.
func produce(ctx context.Context, plain *decompress.Stream, full chan<- segment, empty <-chan []byte) error {
	allocated := 0
	for {
		var buffer []byte
		select {
		case buffer = <-empty:
		default:
			if allocated < plainBuffers {
				buffer, allocated = make([]byte, plainBuffer), allocated+1
				break
			}
			select {
			case buffer = <-empty:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		s, err := readSegment(plain, buffer)
		if len(s.bytes) > 0 || s.checkpoint != nil {
			select {
			case full <- s:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// readSegment reads until the buffer is full, a checkpoint is reached or the stream ends.
func readSegment(plain *decompress.Stream, buffer []byte) (segment, error) {
	n := 0
	for n < len(buffer) {
		m, err := plain.Read(buffer[n:])
		n += m
		if checkpoint := plain.Checkpoint(); checkpoint != nil {
			return segment{buffer[:n], checkpoint}, err
		}
		if err != nil {
			return segment{bytes: buffer[:n]}, err
		}
	}
	return segment{bytes: buffer[:n]}, nil
}

func (d *streamDisk) consume(full <-chan segment, empty chan<- []byte) error {
	out := d.u.writer(&sparse.Writeback{File: d.file}, d.state.Size, d.u.fileLimit()-d.state.Size, d.bound)
	for s := range full {
		d.hash.Write(s.bytes)
		if _, err := out.Write(s.bytes); err != nil {
			return err
		}
		d.state.Size, d.state.Digest = out.Offset, d.sum()
		if s.checkpoint != nil {
			d.state.Checkpoint = s.checkpoint
			if err := d.saveState(); err != nil {
				return fmt.Errorf("saving the state of the disk: %w", err)
			}
		}
		empty <- s.bytes[:cap(s.bytes)]
	}
	return out.Finish()
}
