package sparse

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
)

const (
	// sparseBlock is the granularity of holes: the block size of most file systems.
	SparseBlock = 4096
	// writeBehind is how many bytes are written before the kernel is asked to start
	// with the disk; the sync at the end of a pull is then short.
	writeBehind = 8 << 20
)

var zeroBlock = make([]byte, SparseBlock)

// A Writer writes to a file from an offset on and leaves holes where there
// is nothing but zeroes. It refuses, with [ErrHostile], to write more than limit
// bytes.
type Writer struct {
	File   *os.File
	Offset int64 // where the next byte belongs; a multiple of sparseBlock at first, for holes to be found
	Limit  int64
	// dense: the file may hold other bytes here than zeroes, so zeroes are written
	// too.
	Dense bool
	// admit judges bytes before they are written, and room counts them; nil if the
	// disk has none.
	Admit func(p []byte, offset int64) error
	Room  *space.Budget

	size   int64 // written, holes included
	behind int64 // written since the kernel was asked to start
}

func (w *Writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.Limit-w.size {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes, the most that is allowed", oci.ErrHostile, w.Limit)
	}
	if w.Admit != nil {
		if err := w.Admit(p, w.Offset); err != nil {
			return 0, err
		}
	}
	done := 0
	for done < len(p) {
		end, hole := w.run(p, done)
		if !hole {
			if err := w.Room.Spend(int64(end - done)); err != nil {
				return done, err
			}
			if _, err := w.File.WriteAt(p[done:end], w.Offset); err != nil {
				return done, err
			}
		}
		w.Offset += int64(end - done)
		w.size += int64(end - done)
		done = end
	}
	if w.behind += int64(len(p)); w.behind >= writeBehind {
		w.StartWriteback()
	}
	return done, nil
}

// run is the end of what begins at p[start] and is either all holes or all data.
func (w *Writer) run(p []byte, start int) (end int, hole bool) {
	if w.Dense {
		return len(p), false
	}
	hole = IsZero(block(p[start:], w.Offset))
	for end = start; end < len(p); {
		b := block(p[end:], w.Offset+int64(end-start))
		if IsZero(b) != hole {
			break
		}
		end += len(b)
	}
	return end, hole
}

// StartWriteback is only about speed: a file system that cannot do it is as good.
func (w *Writer) StartWriteback() {
	_ = unix.SyncFileRange(int(w.File.Fd()), w.Offset-w.behind, w.behind, unix.SYNC_FILE_RANGE_WRITE)
	w.behind = 0
}

// block is the part of p, which lies at offset, up to the next block boundary.
func block(p []byte, offset int64) []byte {
	return p[:min(len(p), int(SparseBlock-offset%SparseBlock))]
}

func IsZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

// Size is the number of bytes written.
func (w *Writer) Size() int64 { return w.size }

// Finish gives the file its size, which a hole at its end does not.
func (w *Writer) Finish() error { return w.File.Truncate(w.Offset) }
