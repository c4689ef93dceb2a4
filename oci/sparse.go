package oci

import (
	"bytes"
	"fmt"
	"os"
)

// sparseBlock is the granularity of holes: the block size of most file systems.
const sparseBlock = 4096

var zeroBlock = make([]byte, sparseBlock)

// A sparseWriter writes a file from its beginning and leaves holes where there
// is nothing but zeroes. It refuses, with [ErrHostile], to write more than limit
// bytes.
type sparseWriter struct {
	file   *os.File // new and empty
	limit  int64
	offset int64
}

func (w *sparseWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.limit-w.offset {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes, the most that is allowed", ErrHostile, w.limit)
	}
	done := 0
	for done < len(p) {
		// A run is either all holes or all data.
		hole := isZero(block(p[done:], w.offset))
		end := done
		for end < len(p) {
			b := block(p[end:], w.offset+int64(end-done))
			if isZero(b) != hole {
				break
			}
			end += len(b)
		}
		if !hole {
			if _, err := w.file.WriteAt(p[done:end], w.offset); err != nil {
				return done, err
			}
		}
		w.offset += int64(end - done)
		done = end
	}
	return done, nil
}

// block is the part of p, which lies at offset, up to the next block boundary.
func block(p []byte, offset int64) []byte {
	return p[:min(len(p), int(sparseBlock-offset%sparseBlock))]
}

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

// Size is the number of bytes written.
func (w *sparseWriter) Size() int64 { return w.offset }

// Finish gives the file its size, which a hole at its end does not.
func (w *sparseWriter) Finish() error { return w.file.Truncate(w.offset) }
