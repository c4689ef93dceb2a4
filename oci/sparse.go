package oci

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// sparseBlock is the granularity of holes: the block size of most file systems.
	sparseBlock = 4096
	// writeBehind is how many bytes are written before the kernel is asked to start
	// with the disk; the sync at the end of a pull is then short.
	writeBehind = 8 << 20
)

var zeroBlock = make([]byte, sparseBlock)

// A sparseWriter writes to a file from an offset on and leaves holes where there
// is nothing but zeroes. It refuses, with [ErrHostile], to write more than limit
// bytes.
type sparseWriter struct {
	file   *os.File
	offset int64 // where the next byte belongs; a multiple of sparseBlock at first, for holes to be found
	limit  int64
	// dense: the file may hold other bytes here than zeroes, so zeroes are written
	// too.
	dense bool
	// admit judges bytes before they are written, and room counts them; nil if the
	// disk has none.
	admit func(p []byte, offset int64) error
	room  *room

	size   int64 // written, holes included
	behind int64 // written since the kernel was asked to start
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.limit-w.size {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes, the most that is allowed", ErrHostile, w.limit)
	}
	if w.admit != nil {
		if err := w.admit(p, w.offset); err != nil {
			return 0, err
		}
	}
	done := 0
	for done < len(p) {
		end, hole := w.run(p, done)
		if !hole {
			if err := w.room.take(int64(end - done)); err != nil {
				return done, err
			}
			if _, err := w.file.WriteAt(p[done:end], w.offset); err != nil {
				return done, err
			}
		}
		w.offset += int64(end - done)
		w.size += int64(end - done)
		done = end
	}
	if w.behind += int64(len(p)); w.behind >= writeBehind {
		w.startDisk()
	}
	return done, nil
}

// run is the end of what begins at p[start] and is either all holes or all data.
func (w *sparseWriter) run(p []byte, start int) (end int, hole bool) {
	if w.dense {
		return len(p), false
	}
	hole = isZero(block(p[start:], w.offset))
	for end = start; end < len(p); {
		b := block(p[end:], w.offset+int64(end-start))
		if isZero(b) != hole {
			break
		}
		end += len(b)
	}
	return end, hole
}

// startDisk is only about speed: a file system that cannot do it is as good.
func (w *sparseWriter) startDisk() {
	_ = unix.SyncFileRange(int(w.file.Fd()), w.offset-w.behind, w.behind, unix.SYNC_FILE_RANGE_WRITE)
	w.behind = 0
}

// block is the part of p, which lies at offset, up to the next block boundary.
func block(p []byte, offset int64) []byte {
	return p[:min(len(p), int(sparseBlock-offset%sparseBlock))]
}

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

// Size is the number of bytes written.
func (w *sparseWriter) Size() int64 { return w.size }

// Finish gives the file its size, which a hole at its end does not.
func (w *sparseWriter) Finish() error { return w.file.Truncate(w.offset) }
