package sparse

import (
	"bytes"
	"fmt"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
)

const (
	// SparseBlock is the granularity of holes: the block size of most file systems.
	SparseBlock = 4096
	// writeBehind is how many bytes are written before their writeback is started.
	writeBehind = 8 << 20
)

var zeroBlock = make([]byte, SparseBlock)

// A Writer writes to a file from an offset on, with holes for zeroes. It returns
// [oci.ErrInvalid] for more than Limit bytes.
type Writer struct {
	To     *Writeback
	Offset int64 // of the next byte; starts at a multiple of SparseBlock
	Limit  int64
	// Dense makes it write zeroes, too: the file may have other bytes here.
	Dense bool
	// Admit checks bytes before they are written, and Room accounts for them. Both may be
	// nil.
	Admit func(p []byte, offset int64) error
	Room  *space.Budget

	size   int64 // written, holes included
	behind int64 // written since writeback was last started
}

func (w *Writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.Limit-w.size {
		return 0, fmt.Errorf("%w: unpacks to more than %d bytes, the maximum", oci.ErrInvalid, w.Limit)
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
			if _, err := w.To.File.WriteAt(p[done:end], w.Offset); err != nil {
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

// run returns the end of the hole or data that begins at p[start].
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

// StartWriteback makes the kernel start writing what was written last.
func (w *Writer) StartWriteback() {
	w.To.Start(w.Offset-w.behind, w.behind)
	w.behind = 0
}

// block returns p up to the next block boundary; offset is that of p.
func block(p []byte, offset int64) []byte {
	return p[:min(len(p), int(SparseBlock-offset%SparseBlock))]
}

func IsZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

// Size returns the number of bytes written, with holes.
func (w *Writer) Size() int64 { return w.size }

// Finish sets the size of the file, which a hole at its end does not.
func (w *Writer) Finish() error { return w.To.File.Truncate(w.Offset) }
